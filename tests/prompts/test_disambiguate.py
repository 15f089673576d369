"""Every class of ImageNet-1k whose name means several things gets the words of the right one."""

from __future__ import annotations

import re

import pytest

from prism_fast.prompts.disambiguate import AVOIDED, Disambiguator
from prism_fast.prompts.imagenet import EXCEPTIONS, imagenet_vocabulary
from prism_fast.prompts.vocabulary import Vocabulary, load_vocabulary
from prism_fast.prompts.wordnet import WordNet, imagenet_info, load_wordnet

POLYSEMOUS = """
    0 n01440764 tench fish person          7 n01514668 rooster rooster faucet         9 n01518878 ostrich bird person
  17 n01580077 jay bird diplomat  18 n01582220 magpie bird hoarder  21 n01608432 kite hawk plaything
  23 n01616318 vulture bird person  71 n01770393 scorpion arachnid zodiac  78 n01776313 tick arachnid mattress
  85 n01806567 quail bird food  97 n01847000 drake duck navigator  99 n01855672 goose bird fool
  134 n02012849 crane bird lifting  192 n02096177 cairn terrier stones  227 n02105412 kelpie sheepdog spirit
  242 n02108089 boxer dog combatant  251 n02110341 dalmatian dog european  258 n02111889 samoyed dog russian
  260 n02112137 chow dog meal  264 n02113186 cardigan corgi sweater  287 n02127052 lynx cat browser
  288 n02128385 leopard feline pelt  291 n02129165 lion feline zodiac  292 n02129604 tiger feline person
  308 n02190166 fly insect opening  309 n02206856 bee insect meeting  312 n02229544 cricket insect game
  337 n02363005 beaver rodent hat  339 n02389026 sorrel horse herb  348 n02412080 ram sheep memory
  361 n02445715 skunk carnivore person  378 n02492035 capuchin monkey cloak  408 n02704792 amphibi vehicle frog
  417 n02782093 balloon aircraft toy  427 n02795169 barrel container gun  429 n02799071 baseball ball game
  450 n02860847 bob sled hair  452 n02869837 bonnet hat car  456 n02879718 bow weapon knot
  468 n02930766 cab car compartment  470 n02948072 candle lamp unit  474 n02963159 cardigan sweater corgi
  488 n02999410 chain rings business  492 n03014705 chest box thorax  502 n03047690 clog footwear dance
  511 n03100240 convertible car security 516 n03125729 cradle bed trough  517 n03126707 crane lifting bird
  525 n03160309 dam barrier parent  538 n03220513 dome roof head  541 n03249569 drum instrument container
  542 n03250847 drumstick stick helping  553 n03337140 file furniture tool  576 n03447447 gondola boat car
  587 n03481172 hammer tool bone  606 n03584829 iron appliance metallic  610 n03595614 jersey shirt cattle
  616 n03627232 knot fastener wood  628 n03673027 liner ship fly  630 n03680355 loafer shoe idler
  638 n03710637 maillot tights bathing  639 n03710721 maillot bathing tights  657 n03773504 missile rocket weapon
  664 n03782006 monitor computer lizard  673 n03793489 mouse electronic rodent  677 n03804744 nail fastener finger
  687 n03854065 organ keyboard body  693 n03873416 paddle oar bat  725 n03950228 pitcher container baseball
  726 n03954731 plane tool aircraft  731 n03970156 plunger tool person  744 n04008634 projectile weapon rocket
  748 n04026417 purse bag sum  769 n04118776 rule measuring practice  771 n04125021 safe box condom
  778 n04141975 scale instrument leaf  783 n04153751 screw fastener guard  787 n04192698 shield armor carapace
  834 n04350905 suit garment lawsuit  836 n04355933 sunglass lens spectacles  837 n04356056 sunglasses spectacles lens
  843 n04371774 swing plaything jazz  847 n04389033 tank vehicle container  850 n04399382 teddy plaything undergarment
  881 n04515003 upright piano structural 884 n04523525 vault roof jump  897 n04554684 washer appliance seal
  908 n04592741 wing airfoil bird  927 n07613480 trifle pudding detail  934 n07697537 hotdog sandwich exhibitionist
  950 n07747607 orange fruit pigment  952 n07753113 fig fruit illustration  968 n07930864 cup drinking trophy
  989 n12620546 hip fruit joint  998 n13133613 ear corn sense
"""
"""Class index, wnid, name, a word that must be said with it, a word that must not."""

CASES = [line for row in POLYSEMOUS.splitlines() for line in re.findall(r"(\d+) (n\d{8}) (\S+) (\S+) (\S+)", row)]


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return load_wordnet()


@pytest.fixture(scope="module")
def imagenet() -> Vocabulary:
    return load_vocabulary("imagenet-1k")


def test_there_are_enough_cases() -> None:
    assert len({index for index, *_ in CASES}) == len(CASES) >= 60
    assert sum(wnid in EXCEPTIONS for _, wnid, *_ in CASES) <= 7  # the rule, not the table, is what is tested


@pytest.mark.parametrize(("index", "wnid", "name", "must", "must_not"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_the_right_meaning_is_said(
    imagenet: Vocabulary, index: str, wnid: str, name: str, must: str, must_not: str
) -> None:
    sense = imagenet.senses[int(index)]
    assert sense.wnid == list(imagenet_info("imagenet-1k"))[int(index)] == wnid
    words = sense.phrase.lower()
    assert name in words
    assert re.search(rf"\b{must}", words), words
    assert must_not not in words, words


def test_a_name_that_several_things_have_never_stands_alone(imagenet: Vocabulary, wordnet: WordNet) -> None:
    bare = [s for s in imagenet.senses if len(wordnet.senses(s.phrase)) > 1]
    assert not bare
    assert sum(bool(s.other_senses) for s in imagenet.senses) > 250


def test_no_two_classes_are_asked_for_by_the_same_words(imagenet: Vocabulary) -> None:
    assert len({s.phrase.lower() for s in imagenet.senses}) == 1000


def test_the_kind_is_of_the_class_and_of_nothing_else_of_its_name(imagenet: Vocabulary, wordnet: WordNet) -> None:
    find = Disambiguator(wordnet, [s.wnid for s in imagenet.senses], {})
    checked = 0
    for sense in imagenet.senses:
        found = find(sense.wnid)
        if not found.kind:
            continue
        checked += 1
        mine = {lemma for kind in wordnet.hypernyms(sense.wnid) for lemma in kind.lemmas}
        assert found.kind in mine
        assert not {found.kind, found.kind.split()[-1]} & AVOIDED
        for other in wordnet.senses(found.lemma):
            theirs = {lemma for kind in wordnet.hypernyms(other.wnid) for lemma in kind.lemmas}
            assert other.wnid == sense.wnid or found.kind not in theirs, (sense.phrase, other)
    assert checked > 500


def test_exceptions_are_few_and_each_changes_something(wordnet: WordNet) -> None:
    find = Disambiguator(wordnet, list(imagenet_info("imagenet-1k")), {})
    assert len(EXCEPTIONS) <= 13
    assert all(find(wnid).phrase != named.phrase for wnid, named in EXCEPTIONS.items())


def test_what_else_a_class_could_mean_depends_on_the_task(wordnet: WordNet) -> None:
    lens, spectacles = "n04355933", "n04356056"
    alone, beside = (Disambiguator(wordnet, task, {})(lens).others for task in ([lens], [lens, spectacles]))
    assert beside == (*alone, wordnet[spectacles].gloss)


def test_names_shared_by_classes_get_their_kind_and_are_reported(imagenet: Vocabulary) -> None:
    from prism_fast.errors import UserError

    assert imagenet.names[134] == "crane (bird)"
    assert imagenet.senses[134].bare == "crane"
    with pytest.raises(UserError, match=r"'crane' is a synonym of several.*crane \(bird\).*134.*lifting.*517"):
        imagenet.index("crane")
    alone = imagenet_vocabulary("one", ["n02012849"])
    assert alone.names == ("crane",)
    assert alone.senses[0].phrase == "crane, a bird"  # WordNet's other cranes are still there
