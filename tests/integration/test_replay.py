"""Runs of real processes compared bit for bit with runs in one process."""





def test_sync_run_equals_a_run_in_one_process() -> None: ...
