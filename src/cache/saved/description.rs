//! [`Description`]: what the file of a cache says beside its tensors.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::hook::PointSet;
use crate::model::Transformer;
use crate::run::kept::KeptPositions;
use crate::run::RunDescription;
use crate::tensor::columns::Columns;
use crate::text::input::Tokens;
use crate::unchecked::mapped::dtype;
use crate::{Config, Error, Result};

/// The version of the description that this crate writes and reads.
pub(super) const VERSION: u32 = 1;

/// What the file of a cache says beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    pub(super) version: u32,
    pub(super) model: ModelIdentity,
    /// The points at which hooks put something else in place.
    pub(super) changed: Vec<String>,
    /// The rows of the run's batch.
    pub(super) rows: Columns,
    pub(super) positions: KeptPositions,
    pub(super) has_batch_dim: bool,
}

/// Which model ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelIdentity {
    pub(super) config: Config,
    /// The kind of the weights, as safetensors names it.
    pub(super) kind: String,
    /// The steps of weight processing.
    pub(super) processing: String,
    /// [`Transformer::weights_hash`].
    pub(super) weights: String,
}

impl Description {
    /// What is said of a run of all rows.
    pub(super) fn of_run(
        model: &Transformer,
        tokens: &Tokens,
        kept: &KeptPositions,
        changed: &PointSet,
    ) -> Result<Self> {
        Ok(Description {
            version: VERSION,
            model: ModelIdentity::of(model)?,
            changed: changed.iter(model.config()).map(|point| point.to_string()).collect(),
            rows: Columns::range(0, tokens.ids.size().first().copied().unwrap_or(0)),
            positions: kept.clone(),
            has_batch_dim: true,
        })
    }

    /// As a sink gets it.
    pub(super) fn of_tokens(&self, tokens: &Tokens) -> Result<RunDescription> {
        let text = serde_json::to_string(self).map_err(|_| Error::Internal("a run has no description"))?;
        Ok(RunDescription { text, tokens: tokens.clone() })
    }
}

impl ModelIdentity {
    pub(super) fn of(model: &Transformer) -> Result<Self> {
        Ok(ModelIdentity {
            config: model.config().clone(),
            kind: dtype(model.kind()).map_or(String::new(), |dtype| dtype.safetensors_name().to_string()),
            processing: model.processing_steps().to_string(),
            weights: model.weights_hash()?,
        })
    }

    /// What first differs from a model of this identity, in words.
    pub(super) fn difference(&self, model: &ModelIdentity) -> Option<String> {
        let [theirs, ours] = [self, model].map(|identity| serde_json::to_value(&identity.config).unwrap_or_default());
        if let Some((field, theirs, ours)) = first_difference("", &theirs, &ours) {
            return Some(format!("its `{field}` is {theirs}, and this model's {ours}"));
        }
        let said = |what: &str, theirs: &str, ours: &str| format!("its {what} {theirs}, and this model's {ours}");
        if self.kind != model.kind {
            return Some(said("weights are", &self.kind, &model.kind));
        }
        if self.weights == model.weights {
            return None;
        }
        if self.processing != model.processing {
            let steps = |text: &str| if text.is_empty() { "none".to_string() } else { format!("\"{text}\"") };
            return Some(said("weight processing is", &steps(&self.processing), &steps(&model.processing)));
        }
        Some("its weights have the same shapes and other values".into())
    }
}

/// The first field that differs, with both values.
fn first_difference(path: &str, theirs: &Value, ours: &Value) -> Option<(String, Value, Value)> {
    if theirs == ours {
        return None;
    }
    if let (Value::Object(theirs), Value::Object(ours)) = (theirs, ours) {
        let fields = theirs.keys().chain(ours.keys().filter(|field| !theirs.contains_key(*field)));
        for field in fields {
            let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            let of = |map: &serde_json::Map<String, Value>| map.get(field).cloned().unwrap_or_default();
            if let Some(found) = first_difference(&path, &of(theirs), &of(ours)) {
                return Some(found);
            }
        }
    }
    Some((path.to_string(), theirs.clone(), ours.clone()))
}
