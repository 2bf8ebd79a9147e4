"""Keys and values that are one reserved token each, in real text; for tokenizers that reserve them."""

from dataclasses import dataclass

import numpy as np
import torch

from ropepatch.corpus import RetrievalVocabulary, retrieval_prompt
from ropepatch.errors import PromptLengthError
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, register
from ropepatch.evals.tasks.source import Source


@dataclass(frozen=True)
class KeyValue(Task):
    """The value of a key. Every token is the prompt's: the answer is one token, which is never read."""

    name: str = "kv"
    answer_tokens: int = 0

    def prompt(self, source: Source, place: Place) -> Prompt:
        """Seeded by length and number alone, so that the numbers of the checkpoints' pages hold."""
        bos = [source.tokenizer.bos_token_id] if source.bos else []
        length = place.length - len(bos)
        texts = [text for text in source.texts if len(text) >= length]
        if not texts or length <= 2 * source.pairs:
            raise PromptLengthError(
                f"kv needs a document of {length} tokens and room for {source.pairs} pairs; use a length "
                f"above {2 * source.pairs}, and longer documents"
            )
        key = np.random.SeedSequence((place.seed, place.length, place.number))
        made = retrieval_prompt(
            RetrievalVocabulary.from_tokenizer(source.tokenizer),
            texts[place.number % len(texts)],
            length=length,
            pairs=source.pairs,
            seed=int(key.generate_state(1)[0]),
        )
        answer = torch.tensor([made.answer])
        wrong = [torch.tensor([other]) for other in made.candidates if other != made.answer]
        return Prompt(
            task=self.name,
            number=place.number,
            length=place.length,
            input_ids=torch.cat([torch.tensor(bos, dtype=torch.int64), made.input_ids]),
            references=(str(source.tokenizer.convert_ids_to_tokens(made.answer)),),
            answer=answer,
            candidates=(answer, *wrong),
            depth=(length - 1 - made.distance) / (length - 3),
            distance=made.distance - 1,  # from the value on, and not from the key
            max_new_tokens=0,
            chance=1 / source.pairs,
            without=None,
        )


register(KeyValue())
