"""v1: InfoNCE inside the Hugging Face Trainer. The whole batch's graph is held, so memory bounds the batch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.errors import exit_on_user_error
from koir.runs.command import run
from koir.runs.encoders import ENCODER
from koir.training import EmbeddingTrainer


class InfoNCETrainer(EmbeddingTrainer):
    """Embeds all chunks with their graphs, then one backward through everything."""

    def compute_loss(self, model, batch, return_outputs=False, num_items_in_batch=None):
        """InfoNCE of every query against all documents and hard negatives of the global batch: a scalar."""
        embeddings = model(self.same_number_of_chunks(batch["chunks"]))  # [U, D]
        loss = self.contrast(embeddings, batch)
        return (loss, embeddings) if return_outputs else loss


@exit_on_user_error
def main(argv=None):
    """The command `bash v1/scripts/finetune.sh` runs."""
    return run(InfoNCETrainer, "v1", __doc__, ENCODER, argv)


if __name__ == "__main__":
    main()
