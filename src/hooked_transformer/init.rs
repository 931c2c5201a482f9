//! Fresh weights.

use tch::{Device, Kind, Tensor};

use super::HookedTransformer;
use crate::config::{Activation, NormPosition, Normalization, Positions};
use crate::model::part::{Part, Role};
use crate::pretrained::checkpoint::Generated;
use crate::pretrained::state_dict::state_dict_layout;
use crate::tensor::scalar::{full, Scalar};
use crate::tensor::split_mix::SplitMix64;
use crate::{Config, Error, LoadOptions, Result};

/// How fresh matrices are drawn: TransformerLens' `init_mode`. Biases are zero and gains one with each.
///
/// `fan_in` and `fan_out` of a matrix `[in, out]` are these; of a heads' `[n_heads, in, out]`, `in` and `n_heads · out`, as in
/// TransformerLens (so that `W_O`'s `fan_in` is `d_head`). The gain of Xavier's and Kaiming's schemes is one; TransformerLens
/// takes `initializer_range` for it where that is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal. Radford et al. 2019 also divide what writes to the stream by `√(2 n_layers)`; TransformerLens does not.
    Gpt2 {
        /// The standard deviation, TransformerLens' `initializer_range`. `None` means its default, `0.8 / √d_model`. GPT-2
        /// itself has 0.02.
        std: Option<f64>,
    },
    /// Uniform within `±√(6 / (fan_in + fan_out))` (Glorot and Bengio 2010).
    XavierUniform,
    /// Normal with standard deviation `√(2 / (fan_in + fan_out))` (Glorot and Bengio 2010).
    XavierNormal,
    /// Uniform within `±√(6 / fan_in)` (He et al. 2015).
    KaimingUniform,
    /// Normal with standard deviation `√(2 / fan_in)` (He et al. 2015).
    KaimingNormal,
}

impl Default for Init {
    /// TransformerLens' default: [`Init::Gpt2`] with `0.8 / √d_model`.
    fn default() -> Self {
        Init::Gpt2 { std: None }
    }
}

impl HookedTransformer {
    /// A model with fresh weights of the default [`Init`]: [`HookedTransformer::init_with`].
    ///
    /// ```
    /// use tch_lens::{Config, HookedTransformer};
    /// // 2 layers, d_model 16, 2 heads, 50 tokens, a context of 12.
    /// let model = HookedTransformer::init(Config::new(2, 16, 2, 50, 12), 0)?;
    /// assert_eq!(model.forward([1, 2, 3])?.size(), [1, 3, 50]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`].
    pub fn init(config: Config, seed: i64) -> Result<Self> {
        Self::init_with(config, Init::default(), seed)
    }

    /// A model with fresh weights.
    ///
    /// The same seed gives the same weights. Each matrix has numbers of its own, of the seed and its name alone: a model with one
    /// more layer begins with the same ones. libtorch's generator is neither read nor changed.
    ///
    /// ```
    /// use tch_lens::{Config, HookedTransformer, Init};
    /// let model = HookedTransformer::init_with(Config::new(2, 16, 2, 50, 12), Init::XavierUniform, 0)?;
    /// let bound = (6.0f64 / (16.0 + 64.0)).sqrt(); // of W_in, [d_model, d_mlp]
    /// assert!(model.w_in(0)?.abs().max().double_value(&[]) < bound);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`]; it names mixtures of experts and xIELU too, of which fresh weights are not made.
    pub fn init_with(config: Config, init: Init, seed: i64) -> Result<Self> {
        Ok(HookedTransformer::from(
            LoadOptions::new().no_processing().generated(config, |config| fresh(config, init, seed))?,
        ))
    }
}

/// What a fresh part is filled with.
#[derive(Clone, Copy)]
enum Fill {
    Random,
    Constant(f64),
}

/// TransformerLens' state dict of a fresh model. Each tensor is made when it is read.
fn fresh(config: &Config, init: Init, seed: i64) -> Result<Vec<(String, Generated)>> {
    if config.experts().is_some() {
        return Err(Error::field("mlp.kind", "set", "fresh weights are not made of mixtures of experts"));
    }
    if config.act_fn() == Some(Activation::Xielu) {
        return Err(Error::field("act_fn", "xielu", "fresh weights are not made of its parameters"));
    }
    if let Init::Gpt2 { std: Some(std) } = init
        && !(std.is_finite() && std >= 0.0)
    {
        return Err(Error::field("std", std, "a standard deviation is a number, zero or above"));
    }
    let std = match init {
        Init::Gpt2 { std } => std.unwrap_or(0.8 / (config.d_model as f64).sqrt()),
        _ => 1.0,
    };
    let mut tensors = Vec::new();
    for (address, name, shape) in state_dict_layout(config) {
        let Some(fill) = fill(address.part, config) else { continue };
        let (own_name, own_shape) = (name.clone(), shape.clone());
        let make = move || match fill {
            Fill::Random => random(&own_name, &own_shape, init, std, seed),
            Fill::Constant(number) => full(&own_shape, number, FP32),
        };
        tensors.push((name, Generated::new(shape, make)));
    }
    Ok(tensors)
}

const FP32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// What a part of a fresh model is filled with; `None` where the model has no such part.
fn fill(part: Part, config: &Config) -> Option<Fill> {
    let kind = config.normalization_type();
    let gain = |kind| matches!(kind, Normalization::LN | Normalization::RMS);
    let bias = |kind| kind == Normalization::LN;
    let mlp = !config.attn_only();
    let solu = config.act_fn() == Some(Activation::SoluLn);
    let neurons = config.mlp.as_ref().and_then(|mlp| mlp.norm);
    // TransformerLens' norms after a sublayer have no bias.
    let after = config.norm_position() == NormPosition::BeforeAndAfter;
    let disentangled = config.attention.disentangled;
    let head_norm = config.head.is_some_and(|head| head.norm);
    let exists = match part {
        Part::WE | Part::Q | Part::K | Part::V | Part::O => true,
        Part::QB | Part::KB | Part::VB | Part::OB | Part::UB => true,
        Part::CrossQ | Part::CrossK | Part::CrossV | Part::CrossO => config.attention.cross.is_some(),
        Part::CrossQB | Part::CrossKB | Part::CrossVB | Part::CrossOB => config.attention.cross.is_some(),
        Part::CrossLnW => config.attention.cross.is_some() && gain(kind),
        Part::CrossLnB => config.attention.cross.is_some() && bias(kind),
        Part::CrossLnPostW => config.attention.cross.is_some() && after && gain(kind),
        Part::In | Part::Out | Part::OutB => mlp,
        Part::InB => mlp && !config.gated_mlp(),
        Part::Gate | Part::ProductB => config.gated_mlp(),
        Part::WPos => config.has_w_pos() && !matches!(config.positions, Positions::Sinusoidal(_)),
        Part::U => !config.tie_word_embeddings,
        Part::EmbedLnW => config.post_embedding_ln() && gain(kind),
        Part::EmbedLnB => config.post_embedding_ln() && bias(kind),
        Part::Ln1W => gain(kind),
        Part::Ln1B => bias(kind),
        Part::Ln2W => mlp && gain(kind),
        Part::Ln2B => mlp && bias(kind),
        Part::Ln1PostW => after && gain(kind),
        Part::Ln2PostW => after && mlp && gain(kind),
        Part::MlpLnW => mlp && (solu || neurons.is_some_and(gain)),
        Part::MlpLnB => mlp && (solu || neurons.is_some_and(bias)),
        Part::HeadW | Part::HeadB => config.head.is_some(),
        Part::HeadLnW => head_norm && gain(kind),
        Part::HeadLnB => head_norm && bias(kind),
        Part::WTokenType => config.embed.token_types > 0,
        Part::WDistance => disentangled.is_some(),
        Part::DistanceLnW | Part::DistanceLnB => disentangled.is_some_and(|it| it.norm),
        Part::DistanceK | Part::DistanceKB => {
            disentangled.is_some_and(|it| it.content_to_position && !it.shares_weights)
        }
        Part::DistanceQ | Part::DistanceQB => {
            disentangled.is_some_and(|it| it.position_to_content && !it.shares_weights)
        }
        Part::WTaskType => config.embed.task_types > 0,
        Part::EmbedProject | Part::EmbedProjectB => config.embed.width.is_some(),
        Part::LnFinalW => gain(config.norms.last()),
        Part::LnFinalB => bias(config.norms.last()),
        Part::QNormW | Part::KNormW => config.qk_norm().is_some(),
        Part::LambdaQ1 | Part::LambdaK1 | Part::LambdaQ2 | Part::LambdaK2 => config.attention.differential,
        Part::ZNormW => config.attention.z_norm.is_some_and(gain),
        Part::ZNormB => config.attention.z_norm.is_some_and(bias),
        Part::Sinks => config.use_attention_sinks(),
        Part::RelativeBias => config.attention.relative_bias.is_some(),
        _ => false,
    };
    exists.then(|| match part.role() {
        Role::Matrix => Fill::Random,
        Role::Gain => Fill::Constant(1.0),
        Role::Bias | Role::Parameter | Role::Constant => Fill::Constant(0.0),
    })
}

/// Random numbers are made so many at a time, on the stack.
const PIECE: usize = 1 << 12;

/// A random matrix, `[in, out]` or, of heads, `[n_heads, in, out]`.
fn random(name: &str, shape: &[i64], init: Init, std: f64, seed: i64) -> Result<Tensor> {
    let (fan_in, fan_out) = match *shape {
        [heads, fan_in, fan_out] => (fan_in as f64, (heads * fan_out) as f64),
        _ => (shape[0] as f64, shape[1] as f64),
    };
    let (is_normal, scale) = match init {
        Init::Gpt2 { .. } => (true, std),
        Init::XavierUniform => (false, (6.0 / (fan_in + fan_out)).sqrt()),
        Init::XavierNormal => (true, (2.0 / (fan_in + fan_out)).sqrt()),
        Init::KaimingUniform => (false, (6.0 / fan_in).sqrt()),
        Init::KaimingNormal => (true, (2.0 / fan_in).sqrt()),
    };
    let matrix = Tensor::f_empty(shape, FP32)?;
    let flat = matrix.f_view(-1)?;
    let mut uniform = Uniform::new(seed, name);
    let mut numbers = [0f32; PIECE];
    for start in (0..matrix.numel()).step_by(PIECE) {
        let len = PIECE.min(matrix.numel() - start);
        numbers[..len].iter_mut().zip(uniform.by_ref()).for_each(|(number, random)| *number = random);
        let uniform = Tensor::f_from_slice(&numbers[..len])?;
        let piece = match is_normal {
            // Through the inverse of the normal distribution.
            true => uniform.f_erfinv()?.mul_number(scale * std::f64::consts::SQRT_2)?,
            false => uniform.mul_number(scale)?,
        };
        flat.f_narrow(0, start as i64, len as i64)?.f_copy_(&piece)?;
    }
    Ok(matrix)
}

/// Evenly distributed numbers of (−1, 1), of seed and name alone, 24 bits of each.
struct Uniform(SplitMix64);

impl Uniform {
    fn new(seed: i64, name: &str) -> Self {
        Uniform(SplitMix64::new(std::iter::once(seed as u64).chain(name.bytes().map(u64::from))))
    }
}

impl Iterator for Uniform {
    type Item = f32;

    fn next(&mut self) -> Option<f32> {
        let bits = (self.0.next_bits() >> 40) as i32; // 0 to 2^24 - 1
        Some((2 * bits + 1 - (1 << 24)) as f32 / (1 << 24) as f32)
    }
}
