//! `s2sfs train --s2s`.

use std::path::Path;

use super::train_network::{self, NetworkArguments};
use crate::exit::{Exit, Failure, Outcome};
use crate::train::s2s::S2sError;
use crate::train::s2s::recipe::Recipe;
use crate::train::s2s::session;

/// Trains compressor and decompressor and says what came of it.
pub fn run(
    arguments: &NetworkArguments,
    config: &Path,
    (dir, output): (&Path, &Path),
    (seed, force): (Option<u64>, bool),
) -> Outcome<()> {
    train_network::check_output(arguments, output, force)?;
    let mut recipe = Recipe::read(config).map_err(explain)?;
    arguments.change(&mut recipe.training, seed);
    let order = arguments.order(recipe, dir, output)?;
    let judge = arguments.judge()?;
    train_network::report(output, |tell| {
        session::run(&order, judge, tell).map_err(explain)
    })
}

pub(super) fn explain(error: S2sError) -> Failure {
    let exit = match error {
        S2sError::Network(error) => return train_network::explain(error),
        S2sError::Config(_) => Exit::Usage,
        S2sError::File { .. } => Exit::Damaged,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
