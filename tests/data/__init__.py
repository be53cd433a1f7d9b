"""Tests of the data sets: files as they are found, damaged ones included."""
