//! What evaluates the networks of models.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::network::Engine;
use crate::model::network::simd::Simd;
use crate::model::{Model, ModelHash};

/// An engine that all threads share.
pub type SharedEngine = Arc<dyn Engine>;

/// One engine for every model with a network, made when it is first needed.
#[derive(Default)]
pub(super) struct Engines {
    made: Mutex<HashMap<ModelHash, SharedEngine>>,
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engines")
    }
}

impl Engines {
    /// The engine of a model; `None` if it has no network.
    ///
    /// Those who encode run on many threads already, so that an engine itself uses one.
    pub fn of(&self, model: &Model) -> Option<SharedEngine> {
        let expert = model.network()?;
        let mut made = self.made.lock();
        let engine = made
            .entry(model.hash)
            .or_insert_with(|| Arc::new(Simd::new(expert.network.clone(), 1)));
        Some(engine.clone())
    }

    /// Uses this engine for a model.
    pub fn set(&self, model: &ModelHash, engine: SharedEngine) {
        self.made.lock().insert(*model, engine);
    }
}
