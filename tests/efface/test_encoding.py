"""Collation through the processor: what is labelled, what padding does, what a batch may hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efface.encoding import Encoder, collate, draw, encode, encode_prompts, full_text, prompt_of
from efface.encoding.batches import one_picture_each, split, to_device
from efface.errors import DataError

# The last picture and the words.
_ONE_PICTURE = "{% for part in message['content'][-2:] %}"


@pytest.mark.parametrize("kind", ["pictured", "written"])
def test_the_labels_decode_to_answer_and_end_token(processor, kind, request):
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
    padded_left = collate(prompts, pad, side="left")
    assert padded_left["attention_mask"][0].tolist() == sorted(padded_left["attention_mask"][0].tolist())
    assert padded_left["input_ids"][0, 0] == pad and not padded_left["attention_mask"][0, 0]


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
    assert full_text(processor, "Which colour?", "red", image=True) == prompt + " red</s>"


def test_a_processor_without_chat_template_is_named(processor, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", None)
    with pytest.raises(DataError) as error:
        prompt_of(processor, "Which colour?", image=False)
    assert "LlavaProcessor" in str(error.value) and "base.chat_template" in str(error.value)


def test_a_prompt_that_runs_into_the_answer_is_refused(processor, pictured, monkeypatch):
    """A generation prompt without anything between it and the first word of the answer."""
    template = processor.chat_template.replace("ASSISTANT: ", "ASSISTANT: red").replace(
        "prompt %}ASSISTANT:", "prompt %}ASSISTANT: red"
    )
    monkeypatch.setattr(processor, "chat_template", template)
    with pytest.raises(DataError) as error:
        encode(processor, [replace(pictured[3], answer="green")])
    assert pictured[3].sample_id in str(error.value) and "base.template_arguments" in str(error.value)


def with_prompts_read(processor, samples):
    """Slow reference of `encode`: every prompt goes through the processor with its pictures, to count its
    tokens."""
    rows = encode(processor, samples)
    for row, sample in zip(rows, samples, strict=True):
        images = [sample.images] if sample.images else [None]
        (prompt,) = encode_prompts(processor, [sample.question], images)
        start = prompt["input_ids"].shape[1]
        assert torch.equal(row["input_ids"][:, :start], prompt["input_ids"])
        row["labels"] = row["input_ids"].clone()
        row["labels"][:, :start] = -100
    return rows


def test_the_words_alone_show_where_the_answer_begins(processor, pictured, written):
    album = several(pictured[0], pictured[1], pictured[2])
    for samples in (pictured, written, [album]):
        slow = with_prompts_read(processor, samples)
        for row, expected in zip(encode(processor, samples), slow, strict=True):
            assert row.keys() == expected.keys()
            assert all(torch.equal(row[key], expected[key]) for key in row)


def test_the_answer_is_labelled_as_the_template_writes_it(processor, pictured, monkeypatch):
    """Other separators and end tokens, a template for plain words, and one without an end token."""
    own = processor.chat_template
    turn = (
        "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    )
    turn += "{% for p in m['content'] if p['type'] == 'image' %}<image> {% endfor %}"
    parts = "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}{% endif %}"
    start = "{% if add_generation_prompt %}assistant {% endif %}"
    for template, end in (
        (own, " </s>"),
        (turn + parts + "<unk>\n{% endfor %}" + start, " <unk>"),
        (turn + parts + " :\n{% endfor %}" + start, " :"),
        (turn + parts + "{% endfor %}" + start, " </s>"),
        (turn + parts + "\n{% endfor %}" + start, " </s>"),
    ):
        monkeypatch.setattr(processor, "chat_template", template)
        for row, sample in zip(encode(processor, pictured[:3]), pictured[:3], strict=True):
            labelled = processor.tokenizer.decode(row["labels"][row["labels"] != -100])
            assert labelled.replace(" ", "") == f"{sample.answer}{end}".replace(" ", "")
    for template in (
        "{{ messages[0]['content'][-1]['text'] }}",
        "{{ messages }}",
        start + turn + parts + "{% endfor %}",
    ):
        monkeypatch.setattr(processor, "chat_template", template)
        with pytest.raises(DataError) as error:
            full_text(processor, "Which colour?", "red", image=False)
        assert "base.template_arguments" in str(error.value) and "'red'" in str(error.value)


def several(sample, *others):
    return replace(sample, more_image_bytes=tuple(second.image_bytes for second in others))


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
    plain = dict(Encoder(processor, [pictured[0], written[0]]).batch([0, 1]))
    assert [len(part.get("pixel_values", ())) for part in split(plain, processor.image_token_id)] == [1, 0]


def test_several_pictures_are_refused_by_name_where_they_cannot_be_read(processor, pictured, monkeypatch):
    album = several(pictured[0], pictured[1])
    with pytest.raises(DataError) as error:
        album.row()
    assert "2 pictures" in str(error.value)
    with pytest.raises(DataError) as error:
        replace(album, image_bytes=None)
    assert album.sample_id in str(error.value)
    one = processor.chat_template.replace("{% for part in message['content'] %}", _ONE_PICTURE)
    monkeypatch.setattr(processor, "chat_template", one)
    encode(processor, pictured[:1])
    with pytest.raises(DataError) as error:
        encode(processor, [album])
    assert "LlavaProcessor" in str(error.value) and "2 pictures" in str(error.value)


def test_a_template_that_refuses_a_question_is_named(processor, pictured, monkeypatch):
    refusing = "{{ raise_exception('no pictures, please') }}"
    monkeypatch.setattr(processor, "chat_template", refusing)
    with pytest.raises(DataError) as error:
        encode(processor, pictured[:1])
    assert "no pictures, please" in str(error.value) and "base.chat_template" in str(error.value)


def test_draw_is_seeded_sorted_and_without_replacement():
    indices = draw(100, 20, 0)
    assert indices == sorted(set(indices)) and len(indices) == 20
    assert indices == draw(100, 20, 0) != draw(100, 20, 1)
    assert draw(5, None, 0) == draw(5, 9, 0) == [0, 1, 2, 3, 4]
