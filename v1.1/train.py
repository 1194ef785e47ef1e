"""v1.1: the same InfoNCE, gradient-cached. Few chunks' graphs are held at a time, so patience bounds the batch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.arguments import CacheArguments
from koir.errors import exit_on_user_error
from koir.runs.command import run
from koir.runs.encoders import ENCODER
from koir.training import EmbeddingTrainer


class GradCacheTrainer(EmbeddingTrainer):
    """Embeds all chunks without graphs, takes the loss's gradients at the embeddings, then replays chunk by chunk."""

    def training_step(self, model, batch, num_items_in_batch=None):
        """Adds the whole batch's gradients to the parameters; returns the loss, detached."""
        model.train()
        batch = self._prepare_inputs(batch)
        chunks = self.same_number_of_chunks(batch["chunks"])
        accumulated = self.current_gradient_accumulation_steps
        with self.one_reduction(model) as backward:
            cache = self.gradient_cache(backward, chunks)
            loss = cache(chunks, lambda embeddings: self.contrast(embeddings, batch) / accumulated)
        return loss


@exit_on_user_error
def main(argv=None):
    """The command `bash v1.1/scripts/finetune.sh` runs."""
    return run(GradCacheTrainer, "v1.1", __doc__, ENCODER, argv, CacheArguments)


if __name__ == "__main__":
    main()
