from headrace.runners.suggest import suggest


def test_the_nearest_name_is_given_as_it_is_spelt() -> None:
    assert (
        suggest("direct-num-worker", ["direct_num_workers", "project"])
        == "did you mean 'direct_num_workers'?"
    )
    assert suggest("--inptu", ["--input", "--output"]) == "did you mean '--input'?"


def test_without_a_near_name_all_are_listed_unless_they_are_many() -> None:
    assert suggest("zzz", ["a", "b"]) == "known: a, b"
    assert suggest("zzz", [f"name{i}" for i in range(61)]) == "no known name is near"
