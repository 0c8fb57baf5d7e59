"""Fault reports about other projects, tried here, each with the tests that hold the right value.

The numbers are those of the list that was tried; "m" marks minor ones and messages. A report counts
as fixed if all of its tests pass; a skipped one does not.
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]

# (number, report, file of its tests, names of its tests)
REPORTS = (
    ("1", "a run does not know its data", "test_runs", (
        "test_a_run_is_not_resumed_on_other_data",
        "test_latents_are_encoded_anew_when_their_clips_change_under_the_same_names")),
    ("1", "two folders of one name share a run", "test_commands", (
        "test_two_folders_with_one_name_get_two_runs_and_sets_get_theirs",)),
    ("1", "a new class shifts the vocabulary over old weights", "test_video", (
        "test_the_fingerprint_of_a_folder_knows_other_content_and_a_new_class",)),
    ("1", "a run does not know its layers", "test_runs", (
        "test_layers_are_not_resumed_with_other_code",)),
    ("2", "a deep copy of a video model is the image model", "test_insertion", (
        "test_a_deep_copy_computes_the_same_and_is_independent",
        "test_a_copy_of_a_copy_and_a_copy_of_one_of_two_sets_of_layers_on_one_backbone",
        "test_a_deep_copy_of_a_video_ldm_samples_the_same")),
    ("3", "a gradient of NaN under a finite loss is written into the weights", "test_training", (
        "test_a_gradient_that_is_not_finite_stops_the_run_and_its_last_checkpoint_is_whole",
        "test_between_two_rows_no_bad_gradient_reaches_the_weights_and_the_first_step_is_named")),
    ("4", "two calls in two threads give wrong videos", "test_insertion", (
        "test_two_calls_at_the_same_time_are_two_calls_one_after_the_other",
        "test_calls_of_other_lengths_in_image_mode_and_of_the_bare_backbone_overlap")),
    ("4", "two generations in two threads", "test_pipeline", (
        "test_two_threads_that_generate_at_the_same_time_get_their_own_videos",)),
    ("5", "the frame rate of a file's header is believed", "test_video_reading", (
        "test_the_frame_rate_of_a_browsers_webm_comes_from_its_time_stamps",
        "test_a_song_with_a_cover_is_no_video",
        "test_a_rate_that_agrees_with_the_time_stamps_is_exact")),
    ("6", "mirrored clips are turned, or left as they are", "test_video_reading", (
        "test_a_file_is_turned_and_mirrored_as_its_header_states",
        "test_the_eight_orientations_are_eight_pictures")),
    ("7", "frames of mixed and variable rates are taken by number", "test_video_reading", (
        "test_windows_of_clips_of_24_and_60_frames_a_second_span_the_same_time",
        "test_one_second_of_motion_and_six_of_stills_keep_their_times",
        "test_frames_at_a_target_rate_are_those_on_display_at_that_time")),
    ("8", "one short clip ends a run", "test_runs", (
        "test_clips_that_are_too_short_are_left_out_by_name_before_the_first_step",)),
    ("9", "files that are cut or overwritten", "test_video_reading", (
        "test_a_file_that_was_cut_short_is_read_as_far_as_it_goes_with_a_warning",
        "test_overwritten_bytes_in_the_middle_are_reported",
        "test_frames_before_an_error_of_the_disk_are_read")),
    ("10", "a large clip is held in memory twice (figures: read-video)", "test_video_reading", (
        "test_large_frames_are_let_go_as_soon_as_they_are_small",
        "test_decoded_frames_do_not_wait_for_the_garbage_collector")),
    ("10", "enlarging a video streams, and says how long it takes", "test_commands", (
        "test_a_video_of_ones_own_is_enlarged_and_keeps_its_rate",)),
    ("11", "gradient checkpointing raises an error", "test_diffusers_backbone", (
        "test_gradient_checkpointing_of_diffusers_gives_the_same_gradients",)),
    ("12", "conditions in dicts, lists and tuples are not folded", "test_diffusers_backbone", (
        "test_controlnet_residuals_given_as_a_tuple_reach_each_frame_of_its_own_clip",
        "test_added_conditions_in_a_dict_are_those_of_their_own_clip")),
    ("13", "layers in another number format than their backbone", "test_insertion", (
        "test_layers_take_the_number_format_of_their_backbone",)),
    ("13", "our own U-Net fails in half, bf16 and double", "test_unet", (
        "test_other_number_formats_are_close_to_float32",)),
    ("14", "two runs write to one folder", "test_training", (
        "test_a_second_run_on_a_folder_is_refused_while_the_first_one_lives",)),
    ("14", "parts of dead processes only are deleted", "test_files", (
        "test_unfinished_files_of_dead_processes_go_and_those_of_live_ones_stay",
        "test_the_lock_of_a_dead_process_is_taken_over")),
    ("15", "broken files are named one at a time, and read again", "test_video_reading", (
        "test_all_files_that_cannot_be_read_are_named_at_once_and_nothing_is_read_twice",)),
    ("16", "resuming under another precision", "test_training", (
        "test_a_run_is_not_resumed_under_another_precision",)),
    ("m", "warnings for one frame", "test_commands", ("test_one_frame_is_a_video_too",)),
    ("m", "numbers out of range, unknown options, digits that are none", "test_commands", (
        "test_a_mistake_is_one_line_that_names_it_and_exit_code_2",)),
    ("m", "sound that is longer than the picture", "test_video_reading", (
        "test_sound_that_is_longer_than_the_picture_is_no_damage",)),
    ("m", "a folder that cannot be written is noticed late", "test_commands", (
        "test_an_output_folder_that_cannot_be_written_is_noticed_before_work_starts",)),
    ("m", "layers saved from a U-Net with a LoRA", "test_insertion", (
        "test_layers_saved_from_a_lora_wrapped_backbone_load_into_the_plain_one",)),
    ("m", "the test of a full disk limits the whole process", "test_weights", (
        "test_a_disk_that_fills_up_while_saving_leaves_the_old_file_whole",)),
    ("m", "a damaged config or record is not named", "test_files", (
        "test_a_damaged_json_file_is_named_with_what_is_wrong",
        "test_a_damaged_record_and_a_damaged_config_of_temporal_layers_are_named")),
    ("m", "a video of 1x1 pixels to enlarge", "test_commands", (
        "test_a_video_that_is_too_small_to_enlarge_is_refused_with_its_size",)),
    ("m", "no permission is called damage", "test_files", (
        "test_a_file_that_may_not_be_read_is_not_called_damaged",)),
    ("m", "a cut cache of latents: delete it", "test_files", (
        "test_a_cut_cache_says_what_the_caller_knows_to_help",)),
    ("m", "features of NaN", "test_evaluation", (
        "test_features_that_are_not_finite_are_counted_and_named",)),
)


def run() -> dict:
    """{tried, fixed, reports_tried, reports_fixed, rows}: rows of the table, and whole reports.

    rows: [{report, what, tests, fixed}].
    """
    verdicts = outcomes({f"tests/{file}.py" for _, _, file, _ in REPORTS},
                        {name for *_, names in REPORTS for name in names})
    rows = [dict(report=number, what=what, tests=[f"tests/{file}.py::{name}" for name in names],
                 fixed=int(all(verdicts.get((file, name), False) for name in names)))
            for number, what, file, names in REPORTS]
    numbers = {row["report"] for row in rows} - {"m"}
    whole = [all(row["fixed"] for row in rows if row["report"] == number) for number in numbers]
    return dict(tried=len(rows), fixed=sum(row["fixed"] for row in rows),
                reports_tried=len(numbers), reports_fixed=sum(whole), rows=rows)


def outcomes(files: set[str], names: set[str]) -> dict[tuple[str, str], bool]:
    """{(file, test): whether all of its cases passed} of one run of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tests.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", *sorted(files), f"--junitxml={path}",
                        "-k", " or ".join(sorted(names))], cwd=ROOT, stdout=sys.stderr)
        found: dict[tuple[str, str], bool] = {}
        for case in ElementTree.parse(path).iter("testcase"):
            key = (case.get("classname").rpartition(".")[2], re.sub(r"\[.*", "", case.get("name")))
            found[key] = found.get(key, True) and len(case) == 0
    return found
