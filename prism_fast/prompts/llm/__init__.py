"""Content by a language model: asked over HTTP or run here, its answers cached, checked, and replaced where they fail.

The stages, each usable alone: :mod:`.messages` (what is asked), :mod:`.model` (who answers), :mod:`.cache` (answers
kept), :mod:`.answers` and :mod:`.validation` (what of them is taken), :mod:`.writing` (all of it for the classes of a
task). Nothing of this is needed, or imported, for prompts by the grammar.
"""
