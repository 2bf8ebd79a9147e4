"""What prompts of RULER's tasks hold, counted by hand from their text."""

import json
import re
from collections import Counter
from math import floor, pi

import pytest
from task_sources import byte_level, documents, source

from ropepatch.errors import ConfigError, DataError
from ropepatch.evals.tasks import Place, Source, expand, task


def made(name, length, number=0):
    return task(name).prompt(source(), Place(length, number, 0))


def text(prompt):
    return byte_level().decode(prompt.input_ids)


def test_the_passkey_is_that_of_landmark_attention():
    prompt = made("passkey", 400, 5)
    (key,) = prompt.references
    assert re.fullmatch(r"[1-9]\d{4}", key)
    opening, *_, question = text(prompt).split("\n")
    assert opening == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there."
    )
    assert f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n" in text(prompt)
    assert question == "What is the pass key? The pass key is"
    assert (
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
        in (text(prompt))
    )


def test_a_single_needle_is_asked_for_as_ruler_does():
    prompt = made("niah_single_1", 500)
    whole = text(prompt)
    key, value = re.search(
        r"\nOne of the special magic numbers for (\S+) is: (\d{7})\.", whole
    ).groups()
    assert prompt.references == (value,)
    assert whole.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. I will "
        "quiz you about the number afterwards.\n"
    )
    assert whole.endswith(
        f"\nWhat is the special magic number for {key} mentioned in the provided text? The special magic "
        f"number for {key} mentioned in the provided text is"
    )


@pytest.mark.parametrize(
    ("name", "needles", "keys", "asked"),
    [
        ("niah_single_2", 1, 1, 1),
        ("niah_multikey_1", 4, 4, 1),
        ("niah_multivalue", 4, 1, 4),
        ("niah_multiquery", 4, 4, 4),
    ],
)
def test_ruler_hides_so_many_keys_and_values(name, needles, keys, asked):
    prompt = made(name, 900)
    found = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", text(prompt))
    assert len(found) == len({value for _, value in found}) == needles
    assert len({key for key, _ in found}) == keys
    assert len(prompt.references) == asked
    question = text(prompt).rsplit("\n", 1)[1]
    assert all(key in question for key, value in found if value in prompt.references)
    assert question.startswith("What are all the" if asked > 1 else "What is the")


def test_identifiers_are_keys_and_values_where_ruler_has_them():
    form = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert re.fullmatch(form, made("niah_single_3", 900).references[0])
    pairs = re.findall(
        f"special magic uuids for ({form}) is: ({form})", text(made("niah_multikey_3", 900))
    )
    assert len(pairs) >= 4


def test_a_haystack_of_needles_has_nothing_else():
    prompt = made("niah_multikey_2", 1000)
    _, *lines, _ = text(prompt).split("\n")
    whole = re.compile(r"One of the special magic numbers for \S+ is: \d{7}\.")
    # The window may cut the first and the last one.
    assert all(whole.fullmatch(line) for line in lines[2:-1])
    assert len(lines) > 15


def test_variables_pass_one_value_on_through_four_hops():
    prompt = made("vt", 2000, 3)
    question = text(prompt).rsplit("Question: Find all variables that are assigned the value ", 1)[
        1
    ]
    context = text(prompt).rsplit("Memorize and track", 1)[1]
    value = question.split()[0]
    names = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", context)
    holds = {value}
    for name, assigned in names:  # in the order of the text, each from one before it
        if assigned in holds:
            holds.add(name)
    assert holds - {value} == {*prompt.references}
    assert [name for name, _ in names] == list(prompt.references)
    assert len(names) == 5


def test_the_worked_example_of_variables_is_another_chain_with_its_answer():
    prompt = made("vt", 2000)
    example = text(prompt).split("\nMemorize and track")[0]
    names = re.findall(r"VAR ([A-Z]{5}) =", example)
    assert len(names) == 5
    assert not {*names} & {*prompt.references}
    assert example.endswith("they are: " + " ".join(names))


@pytest.mark.parametrize(
    ("length", "common", "others", "example"),
    [(2000, 6, 1, {3: 10, 1: 10}), (6500, 30, 3, {10: 10, 3: 30})],
)
def test_ten_words_are_common_as_often_as_in_ruler(length, common, others, example):
    prompt = made("cwe", length)
    shown, asked = text(prompt).split("\nBelow is a numbered list")
    counts = Counter(_listed(asked))
    assert {word for word, count in counts.items() if count == common} == {*prompt.references}
    assert len(prompt.references) == 10
    assert {count for word, count in counts.items() if word not in prompt.references} == {others}
    assert Counter(Counter(_listed(shown)).values()) == example


def _listed(part):
    """The words of the one list in a part, whose numbers have to count up."""
    listed = part.split("appear most often.\n")[1].split("\nQuestion")[0]
    entries = re.findall(r"(\d+)\. (\S+)", listed)
    assert [int(number) for number, _ in entries] == [*range(1, len(entries) + 1)]
    return [word for _, word in entries]


def test_coded_words_follow_zipfs_law_and_dots_are_the_most_frequent():
    prompt = made("fwe", 1500)
    words = text(prompt).split("appeared coded words.")[1].split("\nQuestion")[0].split()
    counts = [count for _, count in Counter(words).most_common()]
    ranked = [word for word, _ in Counter(words).most_common(4)]
    assert ranked == ["...", *prompt.references]
    assert all(re.fullmatch(r"[a-z]{6}", word) for word in set(words) - {"..."})
    # Some number of words gives all counts: of rank k, its share k⁻² of ζ(2) = π² / 6, rounded down.
    vocabulary = 1500 // 50
    fits = [
        [c for k in range(1, vocabulary + 1) if (c := floor(total * 6 / pi**2 / k**2))]
        for total in range(100, 1500)
    ]
    assert counts in fits


def test_an_in_style_needle_is_a_comment_whose_beginning_is_the_question():
    prompt = made("needle", 300, 4)
    needle = re.search(r"\n(# The number of the \w+ \w+ is) (\d{5})\.\n", text(prompt))
    assert needle[2] == prompt.references[0]
    assert text(prompt).endswith("\n" + needle[1])


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"Paragraph {n} tells that the capital of land {n} is City{n}. " * 6,
                    "qas": [
                        {
                            "question": f"What is the capital of land {n}?",
                            "answers": [{"text": f"City{n}"}, {"text": f"City{n}"}, {"text": "it"}],
                        },
                        {"question": "Unknown?", "answers": [], "is_impossible": True},
                    ],
                }
                for n in range(12)
            ]
        }
    ]
}
HOTPOT = [
    {
        "question": f"Which town is {n}?",
        "answer": f"Town{n}",
        "context": [
            [f"Title {n}", [f"Town{n} is here.", " It is old."]],
            [f"Other {n}", ["More."]],
        ],
    }
    for n in range(40)
]
LINES = "\n".join(
    json.dumps(
        {
            "question": f"Who is {n}?",
            "context": f"Number {n} is Name{n}. " * 4,
            "answers": f"Name{n}",
        }
    )
    for n in range(12)
)


def asked(tmp_path, name, content, suffix=".json"):
    path = tmp_path / f"questions{suffix}"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Source(byte_level(), documents()[:1], questions={name: path})


@pytest.mark.parametrize(
    ("name", "content", "suffix", "references"),
    [
        ("qa_1", SQUAD, ".json", ("City2", "it")),
        ("qa_2", HOTPOT, ".json", ("Town2",)),
        ("qa_1", LINES, ".jsonl", ("Name2",)),
    ],
)
def test_a_question_stands_behind_its_documents_and_others(
    tmp_path, name, content, suffix, references
):
    given = asked(tmp_path, name, content, suffix)
    prompt = task(name).prompt(given, Place(512, 2, 0))
    whole = text(prompt)
    assert prompt.references == references
    assert len(prompt.input_ids) + prompt.max_new_tokens == 512
    numbers = [int(number) for number in re.findall(r"Document (\d+):\n", whole)]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert len(numbers) >= 3
    assert references[0] in whole
    assert whole.endswith(" Answer:")
    assert [each.name for each in expand(["ruler"], given)][-1] == name


def test_questions_without_a_file_are_refused():
    with pytest.raises(
        ConfigError, match="qa_2 needs a file of questions, and none was given; give HotpotQA"
    ):
        made("qa_2", 512)


@pytest.mark.parametrize(
    ("content", "suffix", "complaint"),
    [
        ('{"data": [', ".json", "is not JSON"),
        (LINES + "\n{broken", ".jsonl", "line 13 is not JSON"),
        (
            '{"question": "a", "context": "b"}',
            ".jsonl",
            "line 1 has no 'answers', its fields are question",
        ),
        ('{"rows": []}', ".json", "has no 'data', its fields are rows; files can be SQuAD's"),
        (
            '[{"question": "a", "answer": "b", "context": [["T"]]}]',
            ".json",
            r"context\[0\] is no list",
        ),
        ('[{"question": 3, "answer": "b", "context": []}]', ".json", "question is no text, but 3"),
        ("\n", ".json", "is empty"),
        ('{"data": []}', ".json", "holds no question with an answer"),
    ],
)
def test_a_damaged_file_of_questions_is_named_with_the_place(tmp_path, content, suffix, complaint):
    with pytest.raises(DataError, match=complaint) as refused:
        task("qa_1").prompt(asked(tmp_path, "qa_1", content, suffix), Place(512, 0, 0))
    assert f"questions{suffix}" in str(refused.value)


def test_a_file_with_too_few_documents_for_a_length_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"of 4096 tokens empty; use a shorter length, or a file with more"
    ):
        task("qa_1").prompt(asked(tmp_path, "qa_1", LINES, ".jsonl"), Place(4096, 0, 0))
