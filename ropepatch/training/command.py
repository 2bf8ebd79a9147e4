"""`ropepatch train` at a terminal: a bar while it runs, and what came out of it."""

from ropepatch.evals import compare, print_table
from ropepatch.terminal import duration
from ropepatch.training.processes import processes
from ropepatch.training.progress import TerminalProgress
from ropepatch.training.recipe import Recipe
from ropepatch.training.runner import train


def run_recipe(recipe: Recipe, title: str) -> None:
    """Run a recipe; of several processes the main one tells of it."""
    if not processes().is_main_process:
        train(recipe)
        return
    with TerminalProgress(title) as progress:
        result = train(
            recipe,
            progress,
            tell=progress.tell,
            announce=progress.announce,
            measured=progress.measured,
        )
    if result.stages:
        print_table(result.stages, [compare(result.stages[0], it) for it in result.stages[1:]])
    if result.loss is not None:
        time = duration(result.seconds)
        print(f"{result.steps} steps, last loss {result.loss:.3f}, {time}: {result.directory}")
    elif not result.stages:
        print(f"this recipe was finished before: {result.directory}")
    if recipe.evaluation is not None:
        print(f"report: {result.directory.with_name('evaluation') / 'report.html'}")
