"""The fault matrix, second half: what comes in from outside, and the figures. See matrix.py."""

from __future__ import annotations

INPUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    # --- data ---------------------------------------------------------------------------------------------------------
    "D1": (
        "broken images",
        (
            "data/test_data_folder.py::test_bad_files_are_skipped_and_listed_with_a_reason",
            "data/test_data_folder.py::test_more_bad_files_than_the_cap_stop_the_run",
            "data/test_data_dirty.py::test_of_damaged_files_every_undecodable_one_is_named_and_none_crashes",
        ),
    ),
    "D2": ("CMYK, palettes, transparency, one bit", ("data/test_data_formats.py::test_golden_pixels",)),
    "D3": (
        "16 and 32 bits, floats",
        (
            "data/test_data_decode.py::test_sixteen_bits_keep_their_whole_range",
            "data/test_data_decode.py::test_other_floats_and_integers_need_a_range",
        ),
    ),
    "D4": ("several frames", ("data/test_data_decode.py::test_the_first_of_several_frames_is_used_and_said_so_once",)),
    "D5": ("EXIF orientation", ("data/test_data_decode.py::test_exif_orientation_is_applied",)),
    "D6": ("a decompression bomb", ("data/test_data_decode.py::test_a_decompression_bomb_costs_no_memory",)),
    "D7": (
        "loops, pipes, folders that may not be listed",
        (
            "data/test_data_dirty.py::test_links_that_lead_in_circles_are_left_out_and_each_file_is_read_once",
            "data/test_data_folder.py::test_what_is_left_out_is_noted",
            "data/test_data_folder.py::test_a_part_that_may_not_be_listed_is_an_error_and_not_left_out",
        ),
    ),
    "D8": (
        "no image, one image, fewer than a batch",
        (
            "data/test_data_folder.py::test_missing_empty_and_wrong_paths_say_what_was_looked_for",
            "data/test_data_dirty.py::test_fewer_images_than_a_batch_are_each_seen_as_often",
        ),
    ),
    "D9": (
        "sizes that differ, extreme shapes",
        (
            "data/test_data_folder.py::test_other_sizes_are_named_and_the_remedy_given",
            "data/test_data_decode.py::test_extreme_shapes_can_be_resized",
        ),
    ),
    "D10": (
        "copies, classes that differ in case only",
        (
            "data/test_data_folder.py::test_copies_are_noted",
            "data/test_data_folder.py::test_classes_that_differ_only_in_case_or_unicode_form_are_refused",
        ),
    ),
    "D11": (
        "data that changed between two starts",
        (
            "training/test_recovery.py::test_a_manifest_without_data_is_other_data",
            "data/test_data_folder.py::test_the_fingerprint_follows_the_files_and_not_the_machine",
        ),
    ),
    "D12": ("odd names", ("data/test_data_folder.py::test_odd_names_are_read_and_shown_escaped",)),
    # --- config -------------------------------------------------------------------------------------------------------
    "C1": ("unknown keys", ("test_config.py::test_an_unknown_name_is_answered_with_the_nearest",)),
    "C2": (
        "wrong types and values",
        (
            "test_config.py::test_a_wrong_value_is_named_with_what_is_expected",
            "faults/test_config.py::test_every_mistaken_config_is_answered_by_its_key",
        ),
    ),
    "C3": (
        "contradictions, all at once, without torch",
        (
            "test_config.py::test_a_contradiction_names_its_keys",
            "test_config.py::test_all_mistakes_come_at_once_and_nothing_that_only_follows_from_them",
            "test_config.py::test_what_needs_no_torch_answers_within_a_second",
        ),
    ),
    "C4": ("huge numbers", ("test_config_sizes.py::test_a_network_that_no_machine_holds_is_refused_by_arithmetic",)),
    "C5": (
        "malformed files",
        (
            "test_config_sources.py::test_a_broken_file_is_named_with_the_line",
            "test_config_sources.py::test_json_files_are_read_as_strictly",
            "test_config_sources.py::test_a_byte_order_mark_and_windows_lines_are_no_mistake",
        ),
    ),
    "C6": (
        "another config for a run that is there",
        (
            "faults/test_config.py::test_another_config_cannot_take_over_a_run",
            "test_config_sources.py::test_every_other_change_is_refused_with_old_and_new",
        ),
    ),
    # --- malicious files ----------------------------------------------------------------------------------------------
    "M1": (
        "code in a pickle",
        (
            "faults/test_malicious.py::test_no_payload_runs_on_any_way_in",
            "test_weights_hostile.py::test_a_pickle_is_refused_and_not_executed",
            "interop/test_pickles.py::test_a_pickle_cannot_run_code",
        ),
    ),
    "M2": (
        "code planted in a run folder",
        (
            "training/test_recovery.py::test_what_others_left_is_ignored_and_what_we_left_is_removed",
            "training/test_checkpoint.py::test_only_what_the_manifest_names_is_opened",
        ),
    ),
    "M3": (
        "bombs in a safetensors header",
        (
            "test_weights_hostile.py::test_a_hostile_header_is_refused_quickly",
            "test_weights_hostile.py::test_a_hostile_header_takes_little_memory",
        ),
    ),
    "M4": (
        "archives that unpack to far more",
        (
            "interop/test_pickles.py::test_archives_are_checked_before_any_pickle_is_read",
            "interop/test_pickles.py::test_a_bomb_does_not_go_off",
            "data/test_data_arrays.py::test_an_archive_that_unpacks_to_far_more_is_refused",
        ),
    ),
    "M5": (
        "members that lead outside: no archive is ever unpacked to files",
        ("faults/test_malicious.py::test_nothing_in_diffunet_unpacks_an_archive_to_files",),
    ),
    "M6": (
        "paths in a manifest or config",
        (
            "training/test_checkpoint.py::test_a_manifest_may_name_plain_files_only",
            "test_config.py::test_an_unknown_name_is_answered_with_the_nearest",
        ),
    ),
    "M7": (
        "class names and modules in a config of others",
        (
            "interop/test_diffusers_load.py::test_what_we_do_not_have_is_refused_by_file_and_option",
            "interop/test_diffusers_load.py::test_a_name_of_the_hub_is_not_looked_up",
        ),
    ),
    "M8": (
        "names of tensors as paths, escapes for a terminal",
        (
            "test_weights_hostile.py::test_names_of_tensors_are_never_paths_or_commands_of_a_terminal",
            "faults/test_malicious.py::test_mutated_files_are_opened_or_refused_at_once",
        ),
    ),
}

# figure -> what it is, and its test; the count in `make test` and under `make soak` are parameters of the test
FIGURES: dict[str, tuple[str, str]] = {
    "T1": (
        "SIGKILL at random times, half of them in a save",
        "faults/test_process.py::test_kills_at_random_times_lose_nothing",
    ),
    "T2": ("every event x SIGKILL, ENOSPC, EIO", "faults/test_points.py::test_no_event_makes_a_run_unrecoverable"),
    "T5": (
        "flipped bits",
        "faults/test_storage.py::test_every_flipped_bit_is_found_and_the_checkpoint_before_is_taken",
    ),
    "T6": ("mutated files", "faults/test_malicious.py::test_mutated_files_are_opened_or_refused_at_once"),
    "T7": ("payloads x every way in", "faults/test_malicious.py::test_no_payload_runs_on_any_way_in"),
    "T8": ("mistaken configs", "faults/test_config.py::test_every_mistaken_config_is_answered_by_its_key"),
    "T9": (
        "damaged images",
        "data/test_data_dirty.py::test_of_damaged_files_every_undecodable_one_is_named_and_none_crashes",
    ),
    "T10": (
        "faults of numbers over two ranks",
        "faults/test_numeric.py::test_faults_of_either_rank_are_left_out_by_both",
    ),
    "T11": ("signals", "faults/test_signals_everywhere.py::test_no_signal_at_a_random_time_is_missed"),
    "T12": (
        "full and failing disks",
        "faults/test_storage.py::test_a_save_that_fails_after_any_share_of_its_bytes_keeps_the_last",
    ),
    "T14": ("ranks killed", "faults/test_ranks_and_workers.py::test_when_a_rank_is_killed_the_other_ends_and_names_it"),
    "T15": ("cost of a save", "faults/test_cost.py::test_hash_and_sync_cost_at_most_twice_a_plain_save"),
    "T18": ("messages", "faults/test_messages.py::test_every_message_teaches"),
}
