"""Which tests hold the cases of shared/cases."""

from __future__ import annotations

HELD_BY = {
    "attention-page-quadratic": (
        "attention/test_windows.py::test_windows_share_the_forward_pass_of_a_text_within_the_models_positions",
    ),
    "big_rows": ("data/test_data_rows.py::test_a_row_group_of_large_rows_is_read_in_small_batches",),
    "bom_jsonl": (
        "cases/test_shared_cases.py::test_documents_of_files",
        "data/test_data_rows.py::test_byte_order_marks_are_not_text",
    ),
    "bos_missing": (
        "cases/test_shared_cases.py::test_documents_begin_as_the_tokenizer_says",
        "data/test_document_ends.py::test_begin_and_end_of_documents",
    ),
    "boundary-remedy": (
        "cases/test_shared_cases.py::test_continuations_that_join_their_prompt",
        "evaluate/test_messages.py::test_a_continuation_that_joins_its_prompt_is_told_so",
    ),
    "busy_port": (
        "distributed/test_world.py::test_a_port_in_use_is_reported_with_a_free_one",
        "distributed/test_world.py::test_a_second_run_at_the_port_of_a_first_ends_with_code_2",
    ),
    "credentials_in_manifest": (
        "data/test_data_inputs.py::test_credentials_are_masked",
        "data/test_data_inputs.py::test_signed_addresses_and_credentials",
        "study/test_records.py::test_passwords_in_addresses_are_masked",
        "report/test_report.py::test_passwords_in_addresses_are_masked",
    ),
    "extend_finished_run": (
        "train/test_resume_changes.py::test_a_constant_run_is_extended_as_if_it_had_been_longer",
        "train/test_resume_changes.py::test_other_settings_need_the_word_and_are_recorded",
    ),
    "fewshot-leak": (
        "cases/test_shared_cases.py::test_no_example_is_among_its_demonstrations",
        "evaluate/test_fewshot.py::test_an_example_is_never_among_its_own_demonstrations",
        "evaluate/test_fewshot.py::test_too_few_other_demonstrations_are_refused_with_the_examples",
    ),
    "generation_config": (
        "cases/test_shared_cases.py::test_generation_settings_are_kept",
        "train/test_export.py::test_an_export_keeps_generation_settings_chat_template_and_licence",
    ),
    "json_array": (
        "cases/test_shared_cases.py::test_documents_of_files",
        "data/test_data_rows.py::test_json_arrays",
    ),
    "many_tiny_files": ("data/test_data_inputs.py::test_planning_is_linear_in_files",),
    "metrics_damaged_line": (
        "cases/test_shared_cases.py::test_a_damaged_line_costs_one_record",
        "log/test_records.py::test_one_damaged_line_costs_one_record",
    ),
    "model_path_respelt": (
        "model/test_resize.py::test_a_model_is_identified_by_its_content",
        "train/test_resume_changes.py::test_the_base_model_moved_or_gone",
    ),
    "nan-model-accuracy": (
        "cases/test_shared_cases.py::test_a_model_of_nan_has_no_accuracy",
        "evaluate/test_not_finite.py::test_no_kind_of_task_has_a_metric",
    ),
    "one_step_trains_nothing": (
        "train/test_outcomes.py::test_a_run_of_one_step_moves_the_weights",
        "train/test_schedule.py::test_every_step_moves_and_the_first_after_warmup_is_at_the_peak",
    ),
    "output-overwritten": (
        "cases/test_shared_cases.py::test_another_model_does_not_replace_results",
        "evaluate/test_output.py::test_other_tasks_are_kept_beside_the_first",
    ),
    "parquet_duplicate_column": (
        "cases/test_shared_cases.py::test_duplicate_columns_are_one_message",
        "data/test_data_rows.py::test_duplicate_columns_are_refused",
    ),
    "parquet_large_binary": (
        "cases/test_shared_cases.py::test_documents_of_files",
        "data/test_data_rows.py::test_every_arrow_type_of_text",
    ),
    "parquet_null_file": (
        "cases/test_shared_cases.py::test_documents_of_files",
        "data/test_data_rows.py::test_columns_of_nulls",
    ),
    "plan-always-zero3": (
        "cost/test_published.py::test_the_lowest_stage_wins_within_the_models_error",
        "cost/test_published.py::test_stage_3_wins_where_nothing_simpler_fits",
    ),
    "plan-published-speeds": (
        "cost/test_published.py::test_the_model_is_right_on_average_of_published_runs",
    ),
    "report-study-quadratic": ("report/test_study_report.py::test_work_grows_with_the_number_of_rows_only",),
    "requeue-without-progress": (
        "slurm/test_restarts.py::test_restarts_without_a_newer_checkpoint_are_limited",
        "slurm/test_restarts.py::test_a_chain_without_progress_ends",
    ),
    "s3_output": ("train/test_export.py::test_output_is_no_address",),
    "salloc-interactive-hang": (
        "cases/test_shared_cases.py::test_a_plain_python_in_an_interactive_allocation_is_alone",
        "distributed/test_world.py::test_ranks_of_every_launcher",
    ),
    "sbatch-env-leftover": (
        "slurm/test_submit.py::test_a_job_gets_no_variables_of_the_job_it_is_submitted_in",
    ),
    "stale_source": (
        "cases/test_shared_cases.py::test_a_replaced_source_is_refused",
        "data/test_data_inputs.py::test_a_changed_source_is_refused",
    ),
    "study-nan-cell-crashes-collect": (
        "study/test_content.py::test_what_is_not_finite_is_left_out_and_named",
        "study/test_content.py::test_a_collection_that_fails_leaves_the_whole_set_before_it",
    ),
    "study-task-data-changed": (
        "study/test_content.py::test_cells_are_evaluated_again_where_a_tasks_content_changes",
        "study/test_content.py::test_other_examples_under_the_same_ids_are_never_paired",
    ),
    "symlinked_subfolder": (
        "cases/test_shared_cases.py::test_documents_of_files",
        "data/test_data_inputs.py::test_linked_folders_are_read_once",
    ),
    "tiktoken_lower_bound": (
        "data/test_data_tokenize.py::test_a_repeated_character_takes_linear_time",
        "package/test_metadata.py::test_versions_known_to_fail_are_not_allowed",
    ),
    "tilde": (
        "train/test_export.py::test_a_tilde_is_the_home_folder_everywhere",
        "data/test_data_inputs.py::test_tilde_is_the_home_folder",
    ),
    "truncation-silent": (
        "cases/test_shared_cases.py::test_examples_that_are_cut_are_named",
        "evaluate/test_overflow.py::test_what_is_cut_is_reported",
    ),
    "whitespace_runs": (
        "data/test_data_tokenize.py::test_runs_have_equal_ids",
        "data/test_data_tokenize.py::test_long_white_space_does_not_reach_the_regex",
    ),
}
