//! Fresh weights.

use tch::{Device, Kind, Tensor};

use super::HookedTransformer;
use crate::config::{Activation, NormPosition, Normalization, QkNorm};
use crate::tensor::scalar::{full, Scalar};
use crate::{Config, Error, Load, Result};

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
        config.validate()?;
        let tensors = Fresh { config: &config, init, seed, all: Vec::new() }.tensors()?;
        Load::new().no_processing().state_dict(config, tensors)
    }
}

/// TransformerLens' state dict of a model, tensor by tensor.
struct Fresh<'a> {
    config: &'a Config,
    init: Init,
    seed: i64,
    all: Vec<(String, Tensor)>,
}

impl Fresh<'_> {
    fn tensors(mut self) -> Result<Vec<(String, Tensor)>> {
        let config = self.config;
        if config.experts().is_some() {
            return Err(Error::field("mlp.kind", "set", "fresh weights are not made of mixtures of experts"));
        }
        if config.act_fn() == Some(Activation::Xielu) {
            return Err(Error::field("act_fn", "xielu", "fresh weights are not made of its parameters"));
        }
        if let Init::Gpt2 { std: Some(std) } = self.init {
            if !(std.is_finite() && std >= 0.0) {
                return Err(Error::field("std", std, "a standard deviation is a number, zero or above"));
            }
        }
        let (d_model, d_vocab, d_vocab_out) = (config.d_model as i64, config.d_vocab as i64, config.d_vocab_out as i64);
        self.matrix("embed.W_E".into(), &[d_vocab, d_model])?;
        if config.post_embedding_ln() {
            self.norm("embed.ln", config.normalization_type(), d_model)?;
        }
        if config.has_w_pos() {
            self.matrix("pos_embed.W_pos".into(), &[config.n_ctx as i64, d_model])?;
        }
        // TransformerLens' norms after a sublayer have no bias.
        let post = config.norm_position() == NormPosition::BeforeAndAfter
            && matches!(config.normalization_type(), Normalization::LN | Normalization::RMS);
        for l in 0..config.n_layers {
            let block = format!("blocks.{l}");
            self.norm(&format!("{block}.ln1"), config.normalization_type(), d_model)?;
            self.attention(&format!("{block}.attn"))?;
            if post {
                self.constant(format!("{block}.ln1_post.w"), &[d_model], 1.0)?;
            }
            if config.attn_only() {
                continue;
            }
            self.norm(&format!("{block}.ln2"), config.normalization_type(), d_model)?;
            self.mlp(&format!("{block}.mlp"))?;
            if post {
                self.constant(format!("{block}.ln2_post.w"), &[d_model], 1.0)?;
            }
        }
        self.norm("ln_final", config.norms.last(), d_model)?;
        if !config.tie_word_embeddings {
            self.matrix("unembed.W_U".into(), &[d_model, d_vocab_out])?;
        }
        self.constant("unembed.b_U".into(), &[d_vocab_out], 0.0)?;
        Ok(self.all)
    }

    fn attention(&mut self, attn: &str) -> Result<()> {
        let config = self.config;
        let (d_model, d_head) = (config.d_model as i64, config.d_head as i64);
        let (n_heads, n_kv) = (config.n_heads as i64, config.n_key_value_heads as i64);
        let underscore = if n_kv == n_heads { "" } else { "_" };
        self.matrix(format!("{attn}.W_Q"), &[n_heads, d_model, d_head])?;
        self.constant(format!("{attn}.b_Q"), &[n_heads, d_head], 0.0)?;
        for part in ["K", "V"] {
            self.matrix(format!("{attn}.{underscore}W_{part}"), &[n_kv, d_model, d_head])?;
            self.constant(format!("{attn}.{underscore}b_{part}"), &[n_kv, d_head], 0.0)?;
        }
        if let Some(norm) = config.qk_norm() {
            for (part, heads) in [("q", n_heads), ("k", n_kv)] {
                let d = if matches!(norm, QkNorm::AllHeads(_)) { heads * d_head } else { d_head };
                self.constant(format!("{attn}.{part}_norm.w"), &[d], 1.0)?;
            }
        }
        if config.use_attention_sinks() {
            self.constant(format!("{attn}.sinks"), &[n_heads], 0.0)?;
        }
        self.matrix(format!("{attn}.W_O"), &[n_heads, d_head, d_model])?;
        self.constant(format!("{attn}.b_O"), &[d_model], 0.0)
    }

    fn mlp(&mut self, mlp: &str) -> Result<()> {
        let config = self.config;
        let (d_model, d_mlp) = (config.d_model as i64, config.d_mlp() as i64);
        self.matrix(format!("{mlp}.W_in"), &[d_model, d_mlp])?;
        if config.gated_mlp() {
            self.matrix(format!("{mlp}.W_gate"), &[d_model, d_mlp])?;
        }
        self.constant(format!("{mlp}.b_in"), &[d_mlp], 0.0)?;
        if config.act_fn() == Some(Activation::SoluLn) {
            self.norm(&format!("{mlp}.ln"), Normalization::LN, d_mlp)?;
        }
        self.matrix(format!("{mlp}.W_out"), &[d_mlp, d_model])?;
        self.constant(format!("{mlp}.b_out"), &[d_model], 0.0)
    }

    fn norm(&mut self, name: &str, kind: Normalization, d: i64) -> Result<()> {
        if matches!(kind, Normalization::LN | Normalization::RMS) {
            self.constant(format!("{name}.w"), &[d], 1.0)?;
        }
        if kind == Normalization::LN {
            self.constant(format!("{name}.b"), &[d], 0.0)?;
        }
        Ok(())
    }

    fn constant(&mut self, name: String, shape: &[i64], value: f64) -> Result<()> {
        self.all.push((name, full(shape, value, (Kind::Float, Device::Cpu))?));
        Ok(())
    }

    fn matrix(&mut self, name: String, shape: &[i64]) -> Result<()> {
        let numbers = uniform(self.seed, &name, shape)?;
        let (fan_in, fan_out) = match *shape {
            [heads, fan_in, fan_out] => (fan_in as f64, (heads * fan_out) as f64),
            _ => (shape[0] as f64, shape[1] as f64),
        };
        let matrix = match self.init {
            Init::Gpt2 { std } => normal(&numbers, std.unwrap_or(0.8 / (self.config.d_model as f64).sqrt()))?,
            Init::XavierUniform => numbers.mul_number((6.0 / (fan_in + fan_out)).sqrt())?,
            Init::XavierNormal => normal(&numbers, (2.0 / (fan_in + fan_out)).sqrt())?,
            Init::KaimingUniform => numbers.mul_number((6.0 / fan_in).sqrt())?,
            Init::KaimingNormal => normal(&numbers, (2.0 / fan_in).sqrt())?,
        };
        self.all.push((name, matrix));
        Ok(())
    }
}

/// Evenly distributed numbers of (−1, 1), of seed and name alone: SplitMix64 (Steele et al. 2014), 24 bits of each.
fn uniform(seed: i64, name: &str, shape: &[i64]) -> Result<Tensor> {
    let mut state = name.bytes().fold(mixed(seed as u64), |state, byte| mixed(state ^ u64::from(byte)));
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (mixed(state) >> 40) as i32; // 0 to 2^24 - 1
        (2 * bits + 1 - (1 << 24)) as f32 / (1 << 24) as f32
    };
    // libtorch's memory first: where there is not enough, that is an error, and a vector's would end the process.
    let matrix = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    for mut part in matrix.f_view(-1)?.f_split(1 << 20, 0)? {
        let numbers: Vec<f32> = (0..part.numel()).map(|_| next()).collect();
        part.f_copy_(&Tensor::f_from_slice(&numbers)?)?;
    }
    Ok(matrix)
}

/// SplitMix64's finaliser.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Normal numbers, through the inverse of the normal distribution.
fn normal(uniform: &Tensor, std: f64) -> Result<Tensor> {
    Ok(uniform.f_erfinv()?.mul_number(std * std::f64::consts::SQRT_2)?)
}
