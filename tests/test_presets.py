"""The guides' advice makes runs that can be started, in the family that it speaks of."""

from itertools import product

from each import each

from lorakit import guide_tables, models, presets
from lorakit.presets import PRESETS, PURPOSES, SIZES
from lorakit.run.config import configure

FAMILIES = sorted({row.family for row in PRESETS})


def configured(family, settings, gpu_preset=""):
    return configure({**settings, "model": {"family": family, "source": "base"}}, gpu_preset)


def named(row):
    return f"{row.family} {row.purpose} {row.size}"


@each(PRESETS, map(named, PRESETS))
def test_a_preset_is_a_config_of_its_family_with_every_gpu_preset(row):
    for gpu_preset in ("", *models.config_class(row.family).gpu_presets):
        config = configured(row.family, presets.settings_for(row, 100), gpu_preset)
        assert config.adapter.rank == row.settings["adapter"]["rank"]
        assert set(config.rates) <= set(config.model.rates)


@each(PRESETS, map(named, PRESETS))
def test_a_preset_changes_nothing_that_a_gpu_preset_sets(row):
    given = presets.settings_for(row, 100)
    for settings in models.config_class(row.family).gpu_presets.values():
        assert not [(part, name) for part in settings for name in settings[part] if name in given.get(part, {})]


@each(PRESETS, map(named, PRESETS))
def test_epochs_follow_from_what_is_to_be_seen_and_the_images(row):
    for count in (1, 30, 333, row.seen, 10 * row.seen):
        loop = presets.settings_for(row, count)["loop"]
        assert loop["epochs"] == 1 or row.seen <= loop["epochs"] * count < row.seen + count
    repeated = presets.preset(row.family, row.purpose, row.images[0], 10)["loop"]["epochs"]
    once = presets.preset(row.family, row.purpose, row.images[0])["loop"]["epochs"]
    assert repeated == -(-once // 10)


@each(PRESETS, map(named, PRESETS))
def test_a_long_run_leaves_about_ten_files_not_one_for_each_epoch(row):
    settings = presets.settings_for(row, 30)
    epochs, every = settings["loop"]["epochs"], settings["save"]["every_epochs"]
    assert epochs // every in range(1, 16) and settings["sample"]["every_epochs"] == every


def test_every_family_that_is_spoken_of_exists_and_has_a_preset_for_every_purpose_and_size():
    assert set(FAMILIES) <= set(models.names())
    for family in FAMILIES:
        assert [(row.purpose, row.size) for row in presets.presets(family)] == [(p, s) for p in PURPOSES for s in SIZES]


@each(product(FAMILIES, PURPOSES))
def test_sizes_follow_each_other_without_a_gap_and_the_number_of_images_finds_its_own(family, purpose):
    rows = [row for row in presets.presets(family) if row.purpose == purpose]
    assert rows[0].images[0] == 1 and rows[-1].images[1] is None
    assert all(after.images[0] == before.images[1] + 1 for before, after in zip(rows, rows[1:], strict=False))
    for row in rows:
        for images in (row.images[0], row.images[1] or 10**6):
            assert presets.size_for(family, purpose, images) == row.size
    assert presets.size_for(family, purpose, 0) == ""


def test_families_are_advised_by_their_own_guide():
    assert {row.source for row in presets.presets("anima")} == {presets.ANIMA}
    assert presets.ANIMA not in {row.source for family in ("sd15", "sdxl") for row in presets.presets(family)}
    rates = {family: presets.find(family, "character", "small").settings["optimizer"] for family in FAMILIES}
    assert rates["anima"]["learning_rate"] < rates["sdxl"]["learning_rate"]
    assert presets.find("sdxl", "character", "middle").settings["adapter"]["rank"] == 16  # as 64 in SD 1.5


def test_a_family_without_a_guide_has_no_presets():
    assert presets.presets("unheard") == () and presets.preset("unheard", "style", 100) == {}
    assert presets.find("unheard", "style", "small") is None


@each(product(FAMILIES, guide_tables.TOPICS))
def test_every_row_of_a_table_has_all_its_columns_and_every_table_its_source(family, topic):
    assert guide_tables.tables(family, topic)
    for table in guide_tables.tables(family, topic):
        assert table.source and table.family in ("", family)
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_what_was_asked_for_cannot_be_changed_through_the_answer():
    row = presets.find("sd15", "character", "small")
    presets.settings_for(row, 30)["adapter"]["rank"] = 1
    assert presets.settings_for(row, 30)["adapter"]["rank"] == 32
