"""What is seen of a training run: one bar, and lines of dev scores."""

import sys

from transformers import ProgressCallback

from koir.bars import progress_bar


class Progress(ProgressCallback):
    """One bar: steps, time left, loss, tokens a second; dev scores in lines above it."""

    def __init__(self):
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed run's steps were not made in no time: what is left is reckoned from those made here."""
        self.current_step, name = state.global_step, None if args.disable_tqdm else "training"
        if state.is_world_process_zero:
            self.training_bar = progress_bar(name, total=state.max_steps, initial=self.current_step, unit="step")

    def close(self) -> None:
        """End the bar's line, where there is one."""
        if self.training_bar is not None:
            self.training_bar.close()

    def say(self, line: str) -> None:
        """A line of the first process, above the bar."""
        if self.training_bar is not None:
            self.training_bar.write(line, file=sys.stderr)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """The newest loss and speed beside the bar, dev scores on a line of their own."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            self.shown |= {"loss": f"{logs['loss']:.3f}", "tokens/s": f"{logs['tokens_per_second']:,.0f}"}
        scores = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if scores:
            line = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            self.say(f"step {state.global_step}: {line}")
        self.training_bar.set_postfix(self.shown, refresh=sys.stderr.isatty())  # a log has its own times
