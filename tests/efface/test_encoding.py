"""Collation through the processor: what is labelled, what padding does, what a batch may hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efface.data import encoding
from efface.encoding import Encoder, collate, draw, encode, encode_prompts, full_text, prompt_of
from efface.encoding.batches import one_picture_each, split, to_device
from efface.encoding.processing import prompt_lengths
from efface.errors import DataError

# The last picture and the words.
_ONE_PICTURE = "{% for part in message['content'][-2:] %}"


@pytest.mark.parametrize("kind", ["pictured", "written"])
def test_the_labels_spell_the_answer_and_the_end_token(processor, kind, request):
    samples = request.getfixturevalue(kind)
    for row, sample in zip(encode(processor, samples), samples, strict=True):
        labelled = row["labels"][row["labels"] != -100]
        assert processor.tokenizer.decode(labelled) == f"{sample.answer} {processor.tokenizer.eos_token}"
        assert torch.equal(labelled, row["input_ids"][0, -len(labelled) :])


def test_pictures_become_tokens_that_are_never_labelled(processor, pictured):
    batch = collate(encode(processor, pictured), processor.tokenizer.pad_token_id)
    image = batch["input_ids"] == processor.image_token_id
    assert (image.sum(dim=1) == 9).all()  # 24 pixels in patches of 8
    assert (batch["labels"][image] == -100).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert batch["pixel_values"].shape == (8, 3, 24, 24)


def test_training_pads_right_and_generation_left(processor, pictured):
    pad = processor.tokenizer.pad_token_id
    rows = encode(processor, [pictured[3], pictured[0]])
    right = collate(rows, pad)
    assert right["attention_mask"][1].tolist() == sorted(right["attention_mask"][1].tolist(), reverse=True)
    prompts = encode_prompts(processor, ["Which colour", "Which colour does this person like?"], [None, None])
    left = collate(prompts, pad, side="left")
    assert left["attention_mask"][0].tolist() == sorted(left["attention_mask"][0].tolist())
    assert left["input_ids"][0, 0] == pad and not left["attention_mask"][0, 0]


def test_batched_encoding_equals_one_by_one(processor, pictured, written):
    together = encode(processor, pictured + written)
    for row, sample in zip(together, pictured + written, strict=True):
        (alone,) = encode(processor, [sample])
        assert row.keys() == alone.keys()
        assert all(torch.equal(row[key], alone[key]) for key in row)


def test_mixed_samples_keep_their_order(processor, pictured, written):
    mixed = [written[0], pictured[1], written[2], pictured[3]]
    kinds = ["pixel_values" in row for row in encode(processor, mixed)]
    assert kinds == [False, True, False, True]


def test_a_small_cache_changes_nothing(processor, pictured):
    large, small = Encoder(processor, pictured), Encoder(processor, pictured, cache_bytes=1)
    for _ in range(2):
        for indices in ([0, 3], [3, 5, 0], [7]):
            a, b = large.batch(indices), small.batch(indices)
            assert all(torch.equal(a[key], b[key]) for key in a)
    assert not small._cache


def test_batches_keep_pictures_and_text_apart(processor, pictured, written):
    encoder = Encoder(processor, [s for pair in zip(pictured, written, strict=True) for s in pair])
    sizes = [(len(b["input_ids"]), "pixel_values" in b) for b in encoder.batches(5)]
    assert sizes == [(5, True), (3, True), (5, False), (3, False)]


def test_prompt_is_a_prefix_of_the_full_text(processor):
    prompt = prompt_of(processor, "Which colour?", image=True)
    assert full_text(processor, prompt, "red") == prompt + " red</s>"


def test_a_processor_without_chat_template_is_named(processor, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", None)
    with pytest.raises(DataError, match="LlavaProcessor has no chat template"):
        prompt_of(processor, "Which colour?", image=False)


def test_a_prompt_that_runs_into_the_answer_is_refused(processor, pictured, monkeypatch):
    monkeypatch.setattr(
        processor, "chat_template", processor.chat_template + "{{ 'red' if add_generation_prompt }}"
    )
    monkeypatch.setattr("efface.encoding.full_text", lambda processor, prompt, answer: prompt[:-3] + answer)
    with pytest.raises(DataError, match=r"sample 3-image: the tokens of the prompt are not the beginning"):
        encode(processor, [pictured[3].__class__.from_row({**pictured[3].row(), "answer": "green"})])


def with_prompts_read(processor, samples):
    """What `encode` makes, by reading every prompt with its pictures once more to count its tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("efface.encoding.prompt_lengths", lambda *given: [None] * len(given[-1]))
        return encode(processor, samples)


def test_words_alone_tell_where_the_answer_begins(processor, pictured, written, monkeypatch):
    album = several(pictured[0], pictured[1], pictured[2])
    for samples in (pictured, written, [album]):
        slow = with_prompts_read(processor, samples)
        with monkeypatch.context() as patch:
            patch.setattr("efface.encoding._prompt_length", None)  # no prompt is read with its pictures
            rows = encode(processor, samples)
        for row, expected in zip(rows, slow, strict=True):
            assert row.keys() == expected.keys()
            assert all(torch.equal(row[key], expected[key]) for key in row)


def test_a_tokenizer_is_saved_as_if_every_prompt_had_been_read(processor, pictured):
    with_prompts_read(processor, pictured)
    saved = processor.tokenizer.backend_tokenizer.to_str()
    encode(processor, pictured)
    assert processor.tokenizer.backend_tokenizer.to_str() == saved


def test_where_words_do_not_tell_the_prompt_is_read_with_its_pictures(processor, pictured, monkeypatch):
    samples = pictured[:2]
    expected = encode(processor, samples)
    calls = []
    read = encoding._prompt_length
    monkeypatch.setattr(encoding, "_prompt_length", lambda *given: calls.append(1) or read(*given))
    monkeypatch.setattr(encoding, "prompt_lengths", lambda *given: [None, *prompt_lengths(*given)[1:]])
    rows = encode(processor, samples)
    assert len(calls) == 1
    assert all(torch.equal(row["labels"], each["labels"]) for row, each in zip(rows, expected, strict=True))


def several(sample, *others):
    return replace(sample, more_image_bytes=tuple(other.image_bytes for other in others))


def test_a_question_about_several_pictures_has_all_of_them_in_order(processor, pictured):
    album = several(pictured[0], pictured[1], pictured[2])
    (row,) = encode(processor, [album])
    alone = [encode(processor, [one])[0]["pixel_values"] for one in pictured[:3]]
    assert torch.equal(row["pixel_values"], torch.cat(alone))
    assert int((row["input_ids"] == processor.image_token_id).sum()) == 3 * 9
    (prompt,) = encode_prompts(processor, [album.question], [album.images])
    assert torch.equal(prompt["pixel_values"], row["pixel_values"])


def test_a_batch_knows_which_pictures_belong_to_which_sample(processor, pictured, written):
    samples = [
        several(pictured[0], pictured[1]),
        written[3],
        pictured[2],
        several(pictured[5], *pictured[6:]),
    ]
    batch = Encoder(processor, samples).batch(range(4))
    assert len(batch["pixel_values"]) == 6 and not one_picture_each(batch)
    for whole in (batch, to_device(batch, torch.device("cpu"))):
        parts = split(whole, processor.image_token_id)
        assert [len(part.get("pixel_values", ())) for part in parts] == [2, 0, 1, 3]
        for part, sample in zip(parts, samples, strict=True):
            (row,) = encode(processor, [sample])
            assert part.keys() == row.keys()
            if "pixel_values" in row:
                assert torch.equal(part["pixel_values"], row["pixel_values"])
    # As many pictures as samples, but not one each.
    assert not one_picture_each(Encoder(processor, [several(*pictured[:2]), written[0]]).batch([0, 1]))
    assert one_picture_each(Encoder(processor, pictured).batch([0, 1]))
    plain = dict(Encoder(processor, [pictured[0], written[0]]).batch([0, 1]))  # made elsewhere
    assert [len(part.get("pixel_values", ())) for part in split(plain, processor.image_token_id)] == [1, 0]


def test_what_cannot_show_several_pictures_says_so(processor, pictured, monkeypatch):
    album = several(pictured[0], pictured[1])
    with pytest.raises(DataError, match="has 2 pictures, and a row of a table has one"):
        album.row()
    with pytest.raises(DataError, match="has further pictures and no first"):
        replace(album, image_bytes=None)
    one = processor.chat_template.replace("{% for part in message['content'] %}", _ONE_PICTURE)
    monkeypatch.setattr(processor, "chat_template", one)
    encode(processor, pictured[:1])
    with pytest.raises(DataError, match="LlavaProcessor writes fewer than 2 pictures.*one picture at a time"):
        encode(processor, [album])


def test_a_template_that_refuses_a_question_is_named(processor, pictured, monkeypatch):
    refusing = "{{ raise_exception('no pictures, please') }}"
    monkeypatch.setattr(processor, "chat_template", refusing)
    with pytest.raises(DataError, match=r"template of LlavaProcessor refuses .*no pictures, please.*name a"):
        encode(processor, pictured[:1])


def test_draw_is_seeded_sorted_and_without_replacement():
    chosen = draw(100, 20, 0)
    assert chosen == sorted(set(chosen)) and len(chosen) == 20
    assert chosen == draw(100, 20, 0) != draw(100, 20, 1)
    assert draw(5, None, 0) == draw(5, 9, 0) == [0, 1, 2, 3, 4]
