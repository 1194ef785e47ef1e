"""reranker: a cross-encoder learns to tell each query's document from its negatives, in token-budget chunks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.arguments import CacheArguments
from koir.errors import exit_on_user_error
from koir.ranking_losses import POINTWISE
from koir.reranker_training import RerankerTrainer
from koir.runs.command import run
from koir.runs.rerankers import RERANKER


class ChunkedTrainer(RerankerTrainer):
    """Groups are cut by length, not by query: a loss over groups goes through the gradient cache, others add up."""

    def training_step(self, model, batch, num_items_in_batch=None):
        """Adds the whole batch's gradients to the parameters; returns the loss, detached."""
        model.train()
        batch = self._prepare_inputs(batch)
        reranker = self.accelerator.unwrap_model(model)
        chunks = self.same_number_of_chunks(batch["chunks"])
        accumulated = self.current_gradient_accumulation_steps
        with self.one_reduction(model) as backward:
            if self.loss_arguments.loss in POINTWISE:
                loss, start = 0.0, 0
                for chunk in chunks:
                    scores = reranker([chunk])  # [m]
                    part = self.judge_chunk(scores, batch, start) / accumulated
                    backward(part)
                    loss, start = loss + part.detach(), start + len(scores)
            else:
                cache = self.gradient_cache(backward, chunks)
                loss = cache(chunks, lambda scores: self.judge(scores, batch) / accumulated)
            self.account(loss, batch)
        return loss


@exit_on_user_error
def main(argv=None):
    """The command `bash reranker/scripts/finetune.sh` runs."""
    return run(ChunkedTrainer, "reranker", __doc__, RERANKER, argv, CacheArguments)


if __name__ == "__main__":
    main()
