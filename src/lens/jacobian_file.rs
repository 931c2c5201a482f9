//! Files of Jacobian lenses: the published ones, which are torch's, and safetensors.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use super::jacobian::JacobianLens;
use super::stream_mean::StreamMean;
use super::tensors::TensorFile;
use crate::format::torch_file::Leaf;
use crate::format::{safetensors, torch_file, Place};
use crate::tensor::file::write_safetensors_with;
use crate::tensor::scalar::Scalar;
use crate::{Error, FormatError, HookedTransformer, Result};

/// What a file holds.
struct Contents {
    /// Of each layer.
    matrices: BTreeMap<usize, Place>,
    /// Whether they are sums over prompts.
    are_sums: bool,
    n_prompts: usize,
    stream_mean: StreamMean,
}

impl JacobianLens {
    /// A lens from a file: the published form, a `.pt` file with `J`, `n_prompts` and `d_model` (`neuronpedia/jacobian-lens` on the hub, and
    /// TransformerLens 4's `JacobianLens.save`), a checkpoint of its fit with `jacobian_sum` and `n_done`, or a file of
    /// [`save`](JacobianLens::save).
    ///
    /// Published lenses are fitted on the activations of transformers, so the model must be loaded without `center_writing_weights` if it has
    /// layer norms. The other steps of weight processing change no stream.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Malformed`], naming the file; those of [`JacobianLens::new`]; [`Error::WrongInput`] for a model whose streams
    /// differ in their mean from those of the fit, and for a lens to another layer than the last.
    pub fn open(model: &HookedTransformer, path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path.as_ref())?;
        let is_safetensors = path.as_ref().extension().is_some_and(|extension| extension == "safetensors");
        let contents = match is_safetensors {
            true => of_safetensors(&file)?,
            false => of_torch(&file, model)?,
        };
        contents.stream_mean.check(model)?;
        let matrix = |(layer, place): (&usize, &Place)| -> Result<(usize, Tensor)> {
            let matrix = file.tensor(place, model)?;
            let matrix = match contents.are_sums {
                true => matrix.div_number(contents.n_prompts as f64)?,
                false => matrix.shallow_clone(),
            };
            Ok((*layer, matrix))
        };
        let matrices = contents.matrices.iter().map(matrix).collect::<Result<Vec<_>>>()?;
        JacobianLens::new(model, matrices, contents.n_prompts)
    }

    /// Writes the lens to a safetensors file, in fp32 or better: `J.LAYER`, `[d_model, d_model]`, and as metadata `n_prompts` and whether the
    /// streams of the fit have their mean (`stream_mean`: `kept` or `taken_off`).
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for a name that does not end in `.safetensors`, as [`open`](JacobianLens::open) would read it as another format;
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            return Err(Error::wrong_input(format!(
                "a lens is saved as safetensors: `{}` must end so",
                path.display()
            )));
        }
        let matrices = self.jacobians.iter().map(|(layer, matrix)| (format!("J.{layer}"), matrix.shallow_clone()));
        let stream_mean = match self.stream_mean {
            StreamMean::Kept => "kept",
            StreamMean::TakenOff => "taken_off",
        };
        let n_prompts = self.n_prompts.to_string();
        write_safetensors_with(path, matrices.collect(), &[("n_prompts", &n_prompts), ("stream_mean", stream_mean)])
    }
}

/// The layer that a name of a matrix ends with.
fn layer_of(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.strip_prefix('.')?.parse().ok()
}

fn of_safetensors(file: &TensorFile) -> Result<Contents> {
    let entries = safetensors::entries(file.bytes()).map_err(|what| file.malformed(what))?;
    let metadata = |field: &str| safetensors::metadata(file.bytes(), field).map_err(|what| file.malformed(what));
    let matrices = entries.into_iter().map(|(name, place)| match layer_of(&name, "J") {
        Some(layer) => Ok((layer, place)),
        None => Err(file.malformed(format!("tensor `{name}` is no matrix of a Jacobian lens, such as `J.0`"))),
    });
    let stream_mean = match metadata("stream_mean")?.as_deref() {
        Some("kept") => StreamMean::Kept,
        Some("taken_off") => StreamMean::TakenOff,
        _ => return Err(file.malformed("its metadata must have `stream_mean`, `kept` or `taken_off`")),
    };
    let n_prompts = metadata("n_prompts")?.and_then(|count| count.parse().ok());
    let n_prompts = n_prompts.ok_or_else(|| file.malformed("its metadata must have `n_prompts`, a whole number"))?;
    Ok(Contents { matrices: matrices.collect::<Result<_>>()?, are_sums: false, n_prompts, stream_mean })
}

fn of_torch(file: &TensorFile, model: &HookedTransformer) -> Result<Contents> {
    let leaves = torch_file::leaves(file.bytes()).map_err(|what| file.malformed(what))?;
    let int = |name: &str| match leaves.get(name) {
        Some(Leaf::Int(number)) => usize::try_from(*number).ok(),
        _ => None,
    };
    let missing = |what: &str| file.malformed(FormatError::Missing { part: what.into() });
    let matrices = |prefix: &str| -> BTreeMap<usize, Place> {
        let matrix = |(name, leaf): (&String, &Leaf)| match leaf {
            Leaf::Tensor(place) => Some((layer_of(name, prefix)?, place.clone())),
            _ => None,
        };
        leaves.iter().filter_map(matrix).collect()
    };
    let (published, sums) = (matrices("J"), matrices("jacobian_sum"));
    let are_sums = published.is_empty();
    let matrices = if are_sums { sums } else { published };
    if matrices.is_empty() {
        return Err(missing("matrices under `J` or `jacobian_sum`, so it is no Jacobian lens"));
    }
    let n_prompts = match are_sums {
        false => int("n_prompts").unwrap_or(0),
        true => {
            int("n_done").filter(|n| *n > 0).ok_or_else(|| missing("`n_done` above zero, the count of its sums"))?
        }
    };
    let (d_model, last) = (model.config().d_model, model.config().n_layers.saturating_sub(1));
    if let Some(found) = int("d_model").filter(|found| *found != d_model) {
        return Err(Error::wrong_input(format!(
            "the lens is of streams of width {found}, but the model's have {d_model}"
        )));
    }
    for name in ["target_layer", "metadata.target_layer"] {
        if let Some(target) = int(name).filter(|target| *target != last) {
            let why = format!(
                "the lens maps to the stream after layer {target}, but only the last layer, {last}, can be read"
            );
            return Err(Error::wrong_input(why));
        }
    }
    // Other estimators of the same programs have another meaning.
    if let Some(Leaf::Text(estimator)) = leaves.get("metadata.estimator")
        && estimator != "jacobian_lens"
    {
        return Err(Error::field("estimator", estimator, "only `jacobian_lens` is supported"));
    }
    Ok(Contents { matrices, are_sums, n_prompts, stream_mean: StreamMean::Kept })
}
