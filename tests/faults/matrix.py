"""The fault matrix: every fault that this project knows, and the tests that hold what is promised there.

P processes, S storage, N numbers, D data, C config, M malicious files; T are the figures. A test is named by its file
below tests/ and its function; `tests/test_fault_matrix.py` holds the table against the tests that there are.
"""

from __future__ import annotations

ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    # --- processes ----------------------------------------------------------------------------------------------------
    "P1": (
        "SIGKILL at a random time in training",
        (
            "faults/test_process.py::test_kills_at_random_times_lose_nothing",
            "training/test_kills.py::test_two_uninterrupted_runs_are_equal",
        ),
    ),
    "P2": (
        "SIGKILL at each file-system event of save, rotation and clean-up",
        (
            "faults/test_process.py::test_a_kill_at_each_event_of_a_save_loses_nothing",
            "faults/test_points.py::test_no_event_makes_a_run_unrecoverable",
            "training/test_checkpoint_crashes.py::test_a_crash_anywhere_leaves_a_checkpoint",
        ),
    ),
    "P3": (
        "SIGKILL while resuming",
        ("faults/test_process.py::test_a_kill_while_resuming_leaves_all_for_the_next_try",),
    ),
    "P4": (
        "SIGTERM in a step, validation, sampling, the wait for data, a save",
        (
            "faults/test_signals_everywhere.py::test_a_signal_is_heeded_within_a_step_wherever_it_comes",
            "training/test_signals.py::test_a_preview_gives_way_to_a_signal",
        ),
    ),
    "P5": (
        "Ctrl-C once and twice, at a terminal",
        (
            "faults/test_signals_everywhere.py::test_ctrl_c_at_a_terminal_stops_the_run_and_its_workers",
            "training/test_signals.py::test_a_second_interrupt_stops_at_once_without_damage",
        ),
    ),
    "P6": (
        "SIGUSR1, alone and under torchrun",
        (
            "training/test_kills.py::test_a_stop_signal_saves_and_resumes_exactly",
            "faults/test_launchers.py::test_usr1_under_torchrun_is_preemption",
        ),
    ),
    "P7": (
        "a signal to the launcher",
        (
            "training/test_ranks.py::test_a_signal_to_the_launcher_stops_both_ranks_and_the_run_goes_on_exactly",
            "faults/test_launchers.py::test_nobody_outlives_a_launcher_that_is_stopped",
        ),
    ),
    "P8": (
        "a data worker is killed, raises or hangs",
        (
            "faults/test_ranks_and_workers.py::test_a_worker_that_fails_once_is_started_again_and_nothing_changes",
            "faults/test_ranks_and_workers.py::test_a_worker_that_fails_again_ends_the_run_and_is_named",
        ),
    ),
    "P9": (
        "a rank is killed",
        ("faults/test_ranks_and_workers.py::test_when_a_rank_is_killed_the_other_ends_and_names_it",),
    ),
    "P10": (
        "a rank is stuck",
        ("faults/test_ranks_and_workers.py::test_a_rank_that_is_stuck_is_named_after_the_timeout",),
    ),
    "P11": (
        "two runs in one folder",
        (
            "faults/test_ranks_and_workers.py::test_two_runs_in_one_folder_and_a_lock_of_the_dead",
            "cli/test_train_refusals.py::test_a_second_run_in_one_folder_is_refused",
        ),
    ),
    "P12": (
        "out of memory",
        (
            "faults/test_ranks_and_workers.py::test_without_memory_a_run_says_its_batch_size_and_three_remedies",
            "faults/test_ranks_and_workers.py::test_real_lack_of_address_space_is_out_of_memory",
        ),
    ),
    # --- storage ------------------------------------------------------------------------------------------------------
    "S1": (
        "the disk is full after x % of a save",
        (
            "faults/test_storage.py::test_a_save_that_fails_after_any_share_of_its_bytes_keeps_the_last",
            "faults/test_storage.py::test_a_full_disk_stops_the_run_or_not_as_one_likes",
            "training/test_recovery.py::test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on",
        ),
    ),
    "S2": ("an I/O error that passes", ("faults/test_storage.py::test_an_error_that_passes_is_waited_for",)),
    "S3": (
        "a folder that cannot be written",
        (
            "faults/test_storage.py::test_a_read_only_disk_is_refused_before_the_first_step",
            "training/test_recovery.py::test_a_folder_that_may_not_be_written_is_refused_before_the_first_step",
        ),
    ),
    "S4": (
        "one bit of a checkpoint is another",
        (
            "faults/test_storage.py::test_every_flipped_bit_is_found_and_the_checkpoint_before_is_taken",
            "training/test_checkpoint_crashes.py::test_every_flipped_bit_of_a_real_checkpoint_is_found",
        ),
    ),
    "S5": (
        "a file is cut, empty, missing or another step's",
        (
            "faults/test_storage.py::test_truncated_emptied_missing_and_swapped_files_are_found",
            "faults/test_storage.py::test_a_run_over_a_damaged_checkpoint_ends_as_the_undisturbed_one",
            "training/test_recovery.py::test_a_damaged_checkpoint_is_named_and_the_run_still_ends_the_same",
        ),
    ),
    "S6": (
        "leavings of ours, and folders of others",
        (
            "training/test_recovery.py::test_what_others_left_is_ignored_and_what_we_left_is_removed",
            "training/test_checkpoint.py::test_names_are_strict_and_foreign_ones_stay",
            "faults/test_process.py::test_half_written_files_of_a_killed_run_are_removed",
        ),
    ),
    "S7": (
        "no checkpoint is whole",
        (
            "training/test_recovery.py::test_without_a_whole_checkpoint_a_run_never_starts_over",
            "training/test_recovery.py::test_a_run_that_lost_all_its_checkpoints_is_not_overwritten",
        ),
    ),
    "S8": (
        "a file shrinks while it is used",
        ("faults/test_storage.py::test_a_file_that_is_cut_while_it_is_used_kills_nobody",),
    ),
    "S9": (
        "a checkpoint of another network",
        ("training/test_recovery.py::test_a_checkpoint_of_another_network_is_refused_with_the_differences",),
    ),
    "S10": (
        "files that a group shall read",
        (
            "faults/test_storage.py::test_every_file_of_a_run_has_the_mode_that_the_umask_leaves",
            "training/test_checkpoint.py::test_files_have_the_mode_that_the_umask_leaves",
        ),
    ),
    "S11": (
        "a power cut",
        (
            "faults/test_storage.py::test_any_power_cut_leaves_the_old_or_the_new_checkpoint",
            "training/test_checkpoint_crashes.py::test_files_are_durable_before_their_name",
        ),
    ),
    # --- numbers ------------------------------------------------------------------------------------------------------
    "N1": (
        "a NaN loss, on all ranks or one",
        (
            "training/test_numeric.py::test_a_step_that_is_not_finite_is_left_out",
            "training/test_numeric.py::test_too_many_in_a_row_stop_the_run_and_name_the_images",
            "faults/test_ranks_and_workers.py::test_a_loss_that_is_not_finite_on_one_rank_is_left_out_on_both",
        ),
    ),
    "N2": (
        "an infinite gradient",
        (
            "training/test_numeric.py::test_a_step_that_is_not_finite_is_left_out",
            "training/test_numeric.py::test_a_run_over_left_out_steps_goes_on_exactly",
        ),
    ),
    "N3": (
        "fp16 overflows",
        (
            "faults/test_numeric.py::test_an_overflow_halves_the_scale_and_goes_on_exactly",
            "faults/test_numeric.py::test_a_scale_below_its_floor_ends_the_run",
            "training/test_recovery.py::test_state_comes_back_equal_bit_for_bit",
        ),
    ),
    "N4": (
        "the loss jumps",
        (
            "training/test_spikes.py::test_a_warning_names_the_images_and_changes_nothing",
            "training/test_spikes.py::test_skip_leaves_the_step_out",
            "training/test_spikes.py::test_rewind_goes_back_and_on_with_later_data",
            "training/test_spikes.py::test_the_last_good_checkpoint_outlives_a_spike_that_stays",
        ),
    ),
    "N5": (
        "fp16 asked for on a CPU",
        ("cli/test_train_refusals.py::test_what_cannot_be_trained_is_refused_and_may_be_mended",),
    ),
    "N6": (
        "weights that are not finite",
        (
            "cli/test_sample_refusals.py::test_weights_that_are_not_numbers_write_no_image",
            "cli/test_convert.py::test_values_that_are_not_finite_are_named",
        ),
    ),
}
