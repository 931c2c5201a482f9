//! [`TunedLens`]: streams read after an affine map of their layer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use super::stream_mean::StreamMean;
use super::tensors::{check_cache, logits, shaped, TensorFile};
use crate::analysis::{LensOptions, LogitLens};
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::format::{safetensors, torch_file, Place};
use crate::layer::Layer;
use crate::tensor::precision::widened;
use crate::unchecked::threads::SharedTensor;
use crate::{CheckpointError, Error, HookedTransformer, Result};

/// A tuned lens (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens"): for each layer an affine map,
/// trained so that the mapped stream, read by the last norm and the unembedding, predicts what the model will say.
///
/// Layer `l` maps the stream `h` before block `l` to `h + W_l h + b_l`. The stream after the last block is read as it is.
///
/// ```
/// use tch_lens::lens::TunedLens;
/// use tch_lens::tch::{Device, Kind, Tensor};
/// use tch_lens::{HookedTransformer, LensOptions};
/// let model = HookedTransformer::toy()?;
/// // `TunedLens::open(&model, "folder")` loads the files of the package tuned-lens. With maps of zero it is the logit lens.
/// let zero = || (Tensor::zeros([128, 128], (Kind::Float, Device::Cpu)), None);
/// let lens = TunedLens::new(&model, [zero(), zero(), zero(), zero()])?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let (tuned, plain) = (lens.read(&cache, LensOptions::new())?, cache.logit_lens(LensOptions::new())?);
/// assert!(tuned.logits().allclose(&plain.logits(), 1e-4, 1e-4, false));
/// println!("{}", tuned.pos(-1)?.rank_of(" Mary")?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TunedLens {
    model: HookedTransformer,
    /// Of each layer.
    translators: Vec<Translator>,
    stream_mean: StreamMean,
    base_model: Option<String>,
}

/// The map of a layer, as the package tuned-lens calls it.
#[derive(Clone, Debug)]
struct Translator {
    /// `W`: `[d_model, d_model]`, output by input.
    weight: SharedTensor,
    /// `b`: `[d_model]`.
    bias: Option<SharedTensor>,
}

/// `config.json` of the package tuned-lens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LensConfig {
    d_model: usize,
    num_hidden_layers: usize,
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default = "linear")]
    lens_type: String,
    base_model_name_or_path: Option<String>,
    /// Which version of the base model; says nothing of the maps.
    #[serde(rename = "base_model_revision")]
    _base_model_revision: Option<String>,
    /// A SHA-256 of the base model's unembedding in the dtype of the fit; not compared.
    #[serde(rename = "unembed_hash")]
    _unembed_hash: Option<String>,
}

fn yes() -> bool {
    true
}

fn linear() -> String {
    "linear_tuned_lens".into()
}

impl TunedLens {
    /// A lens of these maps, `(W_l, b_l)` for each layer, fitted on the streams of `model`: `[d_model, d_model]`, output by input, and
    /// `[d_model]`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for another number of maps than layers; [`Error::Shape`].
    pub fn new(
        model: &HookedTransformer,
        translators: impl IntoIterator<Item = (Tensor, Option<Tensor>)>,
    ) -> Result<Self> {
        let d_model = model.config().d_model as i64;
        let translator = |(layer, (weight, bias)): (usize, (Tensor, Option<Tensor>))| {
            let weight = shaped(&weight, &[d_model, d_model], || format!("the weight of layer {layer}"), model)?;
            let bias = bias.map(|bias| shaped(&bias, &[d_model], || format!("the bias of layer {layer}"), model));
            Ok(Translator { weight, bias: bias.transpose()? })
        };
        let translators = translators.into_iter().enumerate().map(translator).collect::<Result<Vec<_>>>()?;
        let lens =
            TunedLens { model: model.clone(), translators, stream_mean: StreamMean::of(model), base_model: None };
        lens.check(model)?;
        Ok(lens)
    }

    /// A lens from a folder of the package tuned-lens: `config.json`, and `params.safetensors` or `params.pt`.
    ///
    /// Such lenses are fitted on the activations of transformers, so the model must be loaded without `center_writing_weights` if it has layer
    /// norms. The other steps of weight processing change no stream.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Malformed`], naming the file; [`Error::ConfigField`] for a lens of another model or kind;
    /// [`CheckpointError`]; [`Error::WrongInput`] for a model whose streams lack their mean.
    pub fn open(model: &HookedTransformer, folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let config: LensConfig = serde_json::from_slice(&text).map_err(|error| Error::malformed(&path, error))?;
        config.check(model)?;
        StreamMean::Kept.check(model)?;
        let (safe, torch) = (folder.join("params.safetensors"), folder.join("params.pt"));
        let (file, places) = if safe.is_file() {
            let file = TensorFile::open(&safe)?;
            let places = safetensors::entries(file.bytes()).map_err(|what| file.malformed(what))?;
            (file, places)
        } else {
            let file = TensorFile::open(&torch)?;
            let places = torch_file::entries(file.bytes()).map_err(|what| file.malformed(what))?;
            (file, places)
        };
        let mut places: BTreeMap<String, Place> = places.into_iter().collect();
        let d_model = model.config().d_model as i64;
        let mut take = |name: String, shape: Vec<i64>| -> Result<SharedTensor> {
            let Some(place) = places.remove(&name) else {
                return Err(CheckpointError::MissingTensor { name, expected: shape }.into());
            };
            if place.shape != shape {
                return Err(CheckpointError::TensorShape { name, found: place.shape, expected: shape }.into());
            }
            file.tensor(&place, model)
        };
        let translator = |layer: usize| {
            let weight = take(format!("{layer}.weight"), vec![d_model, d_model])?;
            let bias = config.bias.then(|| take(format!("{layer}.bias"), vec![d_model])).transpose()?;
            Ok(Translator { weight, bias })
        };
        let translators = (0..config.num_hidden_layers).map(translator).collect::<Result<Vec<_>>>()?;
        if !places.is_empty() {
            let names: Vec<&str> = places.keys().take(4).map(String::as_str).collect();
            return Err(CheckpointError::ExtraTensors { count: places.len(), names: names.join(", ") }.into());
        }
        let base_model = config.base_model_name_or_path;
        Ok(TunedLens { model: model.clone(), translators, stream_mean: StreamMean::Kept, base_model })
    }

    /// The name of the model that the lens was fitted on, if its file says so.
    pub fn base_model(&self) -> Option<&str> {
        self.base_model.as_deref()
    }

    /// The same maps for another model with as many layers and the same width, such as a fine-tuned one.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for a model of other sizes, or whose streams differ in their mean.
    pub fn with_model(&self, model: &HookedTransformer) -> Result<Self> {
        self.check(model)?;
        let moved = |tensor: &SharedTensor| shaped(tensor, &tensor.size(), String::new, model);
        let translators = self.translators.iter().map(|Translator { weight, bias }| {
            Ok(Translator { weight: moved(weight)?, bias: bias.as_ref().map(moved).transpose()? })
        });
        let translators = translators.collect::<Result<_>>()?;
        Ok(TunedLens { model: model.clone(), translators, ..self.clone() })
    }

    fn check(&self, model: &HookedTransformer) -> Result<()> {
        let (n_layers, d_model) = (model.config().n_layers, model.config().d_model as i64);
        let width = self.translators.first().map_or(d_model, |translator| translator.weight.size()[0]);
        if self.translators.len() != n_layers || width != d_model {
            let found = self.translators.len();
            return Err(Error::wrong_input(format!(
                "the lens has {found} maps of width {width}, but the model has {n_layers} layers of width {d_model}"
            )));
        }
        self.stream_mean.check(model)
    }

    /// What a layer's map makes of streams before it: `[…, d_model]` to the same shape, in fp32 or better.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`]; [`Error::Shape`] for another last axis.
    pub fn translate(&self, stream: &Tensor, layer: impl Into<Layer>) -> Result<Tensor> {
        let layer = self.model.config().layer(layer)?;
        let d_model = self.model.config().d_model as i64;
        if stream.size().last() != Some(&d_model) {
            let expected = format!("[…, {d_model}]");
            return Err(Error::Shape { what: "the stream".into(), found: stream.size(), expected });
        }
        let Some(Translator { weight, bias }) = self.translators.get(layer) else {
            return Err(Error::Internal("a tuned lens has a map for each layer"));
        };
        let stream = widened(stream)?.f_to_kind(weight.f_kind()?)?;
        let mapped = stream.f_add(&stream.f_matmul(&weight.f_tr()?)?)?; // […, d_model]
        match bias {
            Some(bias) => Ok(mapped.f_add(bias)?),
            None => Ok(mapped),
        }
    }

    /// Reads the stream before each block through its map, and the last stream as it is: rows `0_pre`, `1_pre`, …, `final_post`.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::logit_lens`]; [`Error::WrongInput`] for a cache of another model; [`Error::Setting`] with `incl_mid`.
    pub fn read(&self, cache: &ActivationCache, options: LensOptions) -> Result<LogitLens> {
        check_cache(cache, &self.model)?;
        cache.read_streams(options, "Tuned lens", |row, stream| match row {
            Component::ResidPre(layer) => logits(&self.model, &self.translate(stream, *layer)?).map(Some),
            Component::FinalPost => logits(&self.model, stream).map(Some),
            _ => Ok(None),
        })
    }
}

impl LensConfig {
    /// That it is of a kind of lens that is known, and of a model of these sizes.
    fn check(&self, model: &HookedTransformer) -> Result<()> {
        let (n_layers, d_model) = (model.config().n_layers, model.config().d_model);
        if self.lens_type != linear() {
            return Err(Error::field("lens_type", &self.lens_type, "only `linear_tuned_lens` is supported"));
        }
        if self.d_model != d_model {
            return Err(Error::field("d_model", self.d_model, &format!("the model has {d_model}")));
        }
        if self.num_hidden_layers != n_layers {
            return Err(Error::field(
                "num_hidden_layers",
                self.num_hidden_layers,
                &format!("the model has {n_layers}"),
            ));
        }
        Ok(())
    }
}
