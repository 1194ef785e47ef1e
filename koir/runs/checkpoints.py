"""A run's checkpoints and model folder as its Trainer writes them, and reads them when it goes on."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from koir.errors import RunError, refused_by_machine
from koir.gather import meet, world_size
from koir.runs.folder import UNTOUCHED, write_counters


class Checkpoints:
    """What a Trainer saves and loads; it has `began`, what no run can go on with another of, and COUNTED."""

    COUNTED: tuple[str, ...] = ()  # attributes that a resumed run counts on

    def _get_output_dir(self, trial: object = None) -> str:
        return str(Path(self.args.output_dir) / "checkpoints")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; nobody goes on to write into the folder before it is there, for it appears all at once."""
        super().save_model(output_dir, _internal_call)
        meet()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save(Path(output_dir), state_dict)
            self._save_counters(Path(output_dir))

    def _save_counters(self, folder: Path) -> None:
        if folder.name.startswith("checkpoint-"):
            counted = {name: getattr(self, name) for name in self.COUNTED}
            counted = {name: value.item() if torch.is_tensor(value) else value for name, value in counted.items()}
            write_counters(folder, self.began, counted)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = Path(resume_from_checkpoint) / "model.safetensors"
        try:
            self.model.transformer.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise RunError(str(file), why, "the weights of this model, as training saved them") from None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer's, but flags that were changed since (learning rate, weight decay, Adam's) hold from here on.

        A checkpoint's own values would replace them. Under DeepSpeed and schedules over scores they do: a changed rate
        is refused there.
        """
        if self.is_deepspeed_enabled or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        names = ("initial_lr", "weight_decay", "betas", "eps")  # some optimizers keep more there that is no flag
        flags = [{name: group[name] for name in names if name in group} for group in self.optimizer.param_groups]
        with _as_written(checkpoint, "optimizer.pt", "scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)
        groups = self.optimizer.param_groups  # others, since the state was loaded
        for group, now in zip(groups, flags, strict=True):
            if "initial_lr" in now:  # of a schedule over steps
                group["lr"] *= now["initial_lr"] / group["initial_lr"]
            group.update(now)
        if "initial_lr" in flags[0]:
            self.lr_scheduler.base_lrs = [now["initial_lr"] for now in flags]
            self.lr_scheduler._last_lr = [group["lr"] for group in groups]  # what is logged

    def _load_rng_state(self, checkpoint: str | None) -> None:
        name = f"rng_state_{self.args.process_index}.pth" if world_size() > 1 else "rng_state.pth"
        with _as_written(checkpoint, name):
            super()._load_rng_state(checkpoint)

    def _best_checkpoint(self) -> str | None:
        """The checkpoint of the best dev score, where it is asked for; of a run that was moved since, the same."""
        if not self.args.load_best_model_at_end or not (best := self.state.best_model_checkpoint):
            return None
        moved = Path(self._get_output_dir()) / Path(best).name
        return str(moved) if moved.is_dir() else best

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self._best_checkpoint())


@contextlib.contextmanager
def _as_written(checkpoint: str | None, *names: str) -> Iterator[None]:
    """Whatever a checkpoint's files cannot be loaded for is a RunError, but for what the machine refuses."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        if refused_by_machine(error):
            raise
        cut = [name for name in names if not zipfile.is_zipfile(Path(checkpoint) / name)]
        why = " ".join(str(error).split())[:120]
        raise RunError(f"{checkpoint}/{' or '.join(cut or names)}", f"something else ({why})", UNTOUCHED) from None
