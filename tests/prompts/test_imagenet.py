from __future__ import annotations

from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.prompts import PromptConfig, build_prompts, load_vocabulary
from prism_fast.prompts.wordnet import FILE, every_class, imagenet_info, load_wordnet
from prism_fast.prompts.wordnet_source import rows, write

PLACES = (Path("/usr/share/wordnet"),)


@pytest.mark.parametrize(
    ("name", "classes", "index", "wnid"),
    [
        ("imagenet-1k", 1000, 134, "n02012849"),
        ("imagenet-12k", 11821, 0, "n00005787"),
        ("imagenet-100", 100, 0, "n01558993"),
        ("imagenette", 10, 0, "n01440764"),
        ("imagewoof", 10, 9, "n02115641"),
    ],
)
def test_built_in_lists(name: str, classes: int, index: int, wnid: str) -> None:
    vocabulary = load_vocabulary(name)
    assert len(vocabulary) == classes
    assert vocabulary.senses[index].wnid == wnid
    ordered = [sense.wnid for sense in vocabulary.senses]
    known = imagenet_info("imagenet-1k" if classes <= 1000 else name)
    assert ordered == [wnid for wnid in known if wnid in set(ordered)] or ordered == sorted(ordered)
    assert set(ordered) <= set(known)


@pytest.mark.slow
def test_the_full_imagenet() -> None:
    vocabulary = load_vocabulary("imagenet-21k")
    assert len(vocabulary) == 21843
    assert all(sense.phrase for sense in vocabulary.senses)


def test_a_list_of_wnids_and_a_folder_of_them(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("n03126707\n\nn02012849\n")
    mine = load_vocabulary(str(tmp_path / "mine.txt"))
    assert [s.phrase for s in mine.senses] == ["crane, a lifting device", "crane, a bird"]
    for name in ("n03126707", "n02012849"):
        (tmp_path / "train" / name).mkdir(parents=True)
    folder = load_vocabulary(str(tmp_path / "train"))
    assert [s.wnid for s in folder.senses] == ["n02012849", "n03126707"]  # sorted, as ImageFolder numbers them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n02012849\ncrane\n", r"line 2: 'crane': no wnid"),
        ("n00000001\n", r"no class 'n00000001'"),
        ("n02012849\nn02012849\n", "n02012849 is named 2 times"),
    ],
)
def test_bad_lists_of_wnids(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_vocabulary(str(tmp_path / "mine.txt"))
    assert "mine.txt" in str(caught.value)


def test_no_prompt_names_another_class_before_its_own(seed: int) -> None:
    woof = load_vocabulary("imagewoof")
    made = build_prompts(woof, PromptConfig(per_class=50, seed=seed))
    assert made.report["prompts"] == made.report["unique"] == 500
    for prompt in made:
        others = [s.phrase for s in woof.senses if s.wnid != woof.senses[prompt.class_index].wnid]
        assert prompt.sense in prompt.prompt
        assert not any(other in prompt.prompt for other in others)


def test_prompts_are_short_and_name_the_class_early(seed: int) -> None:
    """In letters, as no tokenizer of CLIP's is at hand: its tokens have four and more on English text."""
    made = build_prompts(load_vocabulary("imagenet-1k"), PromptConfig(style="wide", per_class=20, seed=seed))
    assert made.report["prompts"] == made.report["unique"] == 20_000
    for prompt in made:
        end = prompt.prompt.index(prompt.sense) + len(prompt.sense)
        assert len(prompt.prompt[:end].replace(",", " ,").split()) <= 22
        assert len(prompt.prompt.replace(",", " ,").split()) <= 66


def test_a_synset_of_the_file_knows_its_kinds_and_the_order_of_its_senses() -> None:
    wordnet = load_wordnet()
    assert "bird" in [lemma for kind in wordnet.hypernyms("n02012849") for lemma in kind.lemmas]
    assert [s.wnid for s in wordnet.senses("Crane")][-2:] == ["n03126707", "n02012849"]
    assert wordnet.senses("no such noun") == ()
    assert wordnet.breadth("n01503061") > 500 > wordnet.breadth("n02084071")
    assert wordnet.mentions("bird") > wordnet.mentions("wading bird") > wordnet.mentions("bird wading") == 0


def test_the_file_is_what_wordnet_says() -> None:
    folder = next((place for place in PLACES if (place / "data.noun").exists()), None)
    if folder is None:
        pytest.skip("WordNet's own files are not installed (Debian: wordnet-base)")
    import gzip

    assert gzip.decompress(FILE.read_bytes()).decode().splitlines() == rows(folder, every_class())


def test_the_file_is_made_from_wordnets_format(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(
        "  1 the licence\n"
        "00000001 03 n 01 entity 0 000 | that which is\n"
        "00000002 05 n 02 bird 0 fowl 1 001 @ 00000001 n 0000 | it flies\n"
        "00000003 05 n 02 crane 0 grus_grus 0 002 @ 00000002 n 0000 #m 00000001 n 0000 | wades\n"
        '00000004 06 n 01 Crane 1 001 @i 00000001 n 0000 | a writer; of novels; "an example"\n'
        "00000005 06 n 01 chair 0 001 @ 00000001 n 0000 | to sit on\n"
    )
    (tmp_path / "index.noun").write_text(
        "  1 the licence\n"
        "entity n 1 0 1 1 00000001\n"
        "bird n 1 1 @ 1 1 00000002\n"
        "fowl n 1 1 @ 1 1 00000002\n"
        "crane n 2 1 @ 2 1 00000004 00000003\n"
        "grus_grus n 1 1 @ 1 0 00000003\n"
        "chair n 1 1 @ 1 1 00000005\n"
    )
    assert rows(tmp_path, ["n00000003"]) == [
        "00000001\t\t1\tentity\t",
        "00000002\t00000001\t1 1\tbird|fowl\t",
        "00000003\t00000002\t2 1\t\t",
        "00000004\t00000001\t1\tCrane\ta writer; of novels",
    ]
    (tmp_path / "data.noun").write_text("nothing of WordNet\n")
    with pytest.raises(UserError, match=r"data\.noun is not WordNet's"):
        write(tmp_path, tmp_path / "out.gz")
    with pytest.raises(UserError, match=r"give the folder of WordNet 3\.0's files"):
        write(tmp_path / "missing", tmp_path / "out.gz")
    assert not (tmp_path / "out.gz").exists()
