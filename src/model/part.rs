//! [`Part`]: every tensor that a transformer can have, with its name, its shape and its role. [`Address`] is one of a model.

use std::fmt;

use crate::config::QkNorm;
use crate::Config;

/// How a part enters the computation, and with it what a model computes that lacks the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A linear map or an embedding. A model that needs one cannot do without it.
    Matrix,
    /// Added. Absent, it is zero.
    Bias,
    /// Multiplied with. Absent, it is one.
    Gain,
    /// Read by an activation function or a softmax. A model that needs one cannot do without it.
    Parameter,
    /// As [`Role::Parameter`], but kept in fp32 and not trained.
    Constant,
}

macro_rules! parts {
    ($($(#[$doc:meta])* $part:ident: $role:ident, $name:literal;)*) => {
        /// A tensor of a transformer. Matrices are in libtorch's orientation, `[out, in]`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Part {
            $($(#[$doc])* $part,)*
        }

        impl Part {
            /// The name in [`Transformer::parameters`](super::Transformer::parameters), without block and expert.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Part::$part => $name,)*
                }
            }

            /// How the part enters the computation.
            pub(crate) const fn role(self) -> Role {
                match self {
                    $(Part::$part => Role::$role,)*
                }
            }
        }
    };
}

parts! {
    /// Token embedding: `[d_vocab, d_model]`.
    WE: Matrix, "embed.W_E";
    EmbedLnW: Gain, "embed.ln.w";
    EmbedLnB: Bias, "embed.ln.b";
    /// Position embedding: `[n_ctx, d_model]`.
    WPos: Matrix, "pos_embed.W_pos";
    Ln1W: Gain, "ln1.w";
    Ln1B: Bias, "ln1.b";
    /// What the model keeps: [`Part::Q`], [`Part::K`] and [`Part::V`], one below the other.
    Qkv: Matrix, "attn.qkv.weight";
    QkvB: Bias, "attn.qkv.bias";
    /// `[n_heads · d_head, d_model]`
    Q: Matrix, "attn.q.weight";
    QB: Bias, "attn.q.bias";
    /// `[n_kv_heads · d_head, d_model]`
    K: Matrix, "attn.k.weight";
    KB: Bias, "attn.k.bias";
    /// `[n_kv_heads · d_head, d_model]`
    V: Matrix, "attn.v.weight";
    VB: Bias, "attn.v.bias";
    /// `[d_head]`, `[n_heads, d_head]`, or of all heads together `[n_heads · d_head]`.
    QNormW: Gain, "attn.q_norm.w";
    QNormB: Bias, "attn.q_norm.b";
    KNormW: Gain, "attn.k_norm.w";
    KNormB: Bias, "attn.k_norm.b";
    /// `[n_heads]`
    Sinks: Parameter, "attn.sinks";
    /// Of all heads: `[n_heads · d_head]`.
    ZNormW: Gain, "attn.z_norm.w";
    ZNormB: Bias, "attn.z_norm.b";
    /// Of differential attention: `[d_head]` each.
    LambdaQ1: Parameter, "attn.lambda_q1";
    LambdaK1: Parameter, "attn.lambda_k1";
    LambdaQ2: Parameter, "attn.lambda_q2";
    LambdaK2: Parameter, "attn.lambda_k2";
    /// `[d_model, n_heads · d_head]`
    O: Matrix, "attn.o.weight";
    OB: Bias, "attn.o.bias";
    Ln1PostW: Gain, "ln1_post.w";
    Ln1PostB: Bias, "ln1_post.b";
    Ln2W: Gain, "ln2.w";
    Ln2B: Bias, "ln2.b";
    /// `[num_experts, d_model]`
    Router: Matrix, "mlp.router.weight";
    RouterB: Bias, "mlp.router.bias";
    /// `[d_mlp, d_model]`; of a mixture, each expert's.
    In: Matrix, "mlp.in.weight";
    InB: Bias, "mlp.in.bias";
    /// `[d_mlp, d_model]`
    Gate: Matrix, "mlp.gate.weight";
    GateB: Bias, "mlp.gate.bias";
    /// TransformerLens' bias of a gated MLP, added to the product of gate and linear part: `[d_mlp]`.
    ProductB: Bias, "mlp.b_product";
    /// SoLU's norm: `[d_mlp]`.
    MlpLnW: Gain, "mlp.ln.w";
    MlpLnB: Bias, "mlp.ln.b";
    /// `[d_model, d_mlp]`
    Out: Matrix, "mlp.out.weight";
    OutB: Bias, "mlp.out.bias";
    /// xIELU's alphas as checkpoints have them, before their softplus: one entry each, as all of xIELU's.
    XieluAlphaP: Constant, "mlp.act_fn.alpha_p";
    XieluAlphaN: Constant, "mlp.act_fn.alpha_n";
    /// The alphas as the model uses them: their softplus, and for the negative half plus beta.
    XieluPositive: Constant, "mlp.act_fn.positive";
    XieluNegative: Constant, "mlp.act_fn.negative";
    XieluBeta: Constant, "mlp.act_fn.beta";
    XieluEps: Constant, "mlp.act_fn.eps";
    Ln2PostW: Gain, "ln2_post.w";
    Ln2PostB: Bias, "ln2_post.b";
    LnFinalW: Gain, "ln_final.w";
    LnFinalB: Bias, "ln_final.b";
    /// Of the neurons between the last norm and the unembedding: `[d_model, d_model]`.
    HeadW: Matrix, "head.weight";
    HeadB: Bias, "head.bias";
    HeadLnW: Gain, "head.ln.w";
    HeadLnB: Bias, "head.ln.b";
    /// `[d_vocab_out, d_model]`
    U: Matrix, "unembed.weight";
    UB: Bias, "unembed.b_U";
}

impl Part {
    /// The shape in a model of this configuration. A norm of queries or keys may have a gain for each head instead:
    /// `[heads, d_head]`.
    pub(crate) fn shape(self, config: &Config) -> Vec<i64> {
        let (d_model, d_mlp, d_head) = (config.d_model as i64, config.d_mlp() as i64, config.d_head as i64);
        let (q_rows, kv_rows) = (config.n_heads as i64 * d_head, config.n_key_value_heads as i64 * d_head);
        let all_heads = matches!(config.qk_norm(), Some(QkNorm::AllHeads(_)));
        let experts = config.num_experts().unwrap_or(0) as i64;
        let d_vocab_out = config.d_vocab_out as i64;
        match self {
            Part::WE => vec![config.d_vocab as i64, d_model],
            Part::WPos => vec![config.n_ctx as i64, d_model],
            Part::EmbedLnW | Part::EmbedLnB | Part::LnFinalW | Part::LnFinalB => vec![d_model],
            Part::Ln1W | Part::Ln1B | Part::Ln2W | Part::Ln2B => vec![d_model],
            Part::Ln1PostW | Part::Ln1PostB | Part::Ln2PostW | Part::Ln2PostB => vec![d_model],
            Part::Qkv => vec![q_rows + 2 * kv_rows, d_model],
            Part::QkvB => vec![q_rows + 2 * kv_rows],
            Part::Q => vec![q_rows, d_model],
            Part::QB => vec![q_rows],
            Part::K | Part::V => vec![kv_rows, d_model],
            Part::KB | Part::VB => vec![kv_rows],
            Part::QNormW | Part::QNormB => vec![if all_heads { q_rows } else { d_head }],
            Part::KNormW | Part::KNormB => vec![if all_heads { kv_rows } else { d_head }],
            Part::ZNormW | Part::ZNormB => vec![q_rows],
            Part::LambdaQ1 | Part::LambdaK1 | Part::LambdaQ2 | Part::LambdaK2 => vec![d_head],
            Part::Sinks => vec![config.n_heads as i64],
            Part::O => vec![d_model, q_rows],
            Part::OB | Part::OutB => vec![d_model],
            Part::Router => vec![experts, d_model],
            Part::RouterB => vec![experts],
            Part::In | Part::Gate => vec![d_mlp, d_model],
            Part::InB | Part::GateB | Part::ProductB | Part::MlpLnW | Part::MlpLnB => vec![d_mlp],
            Part::Out => vec![d_model, d_mlp],
            Part::XieluAlphaP | Part::XieluAlphaN | Part::XieluPositive | Part::XieluNegative => vec![1],
            Part::XieluBeta | Part::XieluEps => vec![1],
            Part::HeadW => vec![d_model, d_model],
            Part::HeadB | Part::HeadLnW | Part::HeadLnB => vec![d_model],
            Part::U => vec![d_vocab_out, d_model],
            Part::UB => vec![d_vocab_out],
        }
    }
}

/// Which block and expert a part belongs to: none outside the blocks, and no expert outside a mixture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) layer: Option<usize>,
    pub(crate) expert: Option<usize>,
}

impl Location {
    /// Within this block.
    pub(crate) fn block(layer: usize) -> Self {
        Location { layer: Some(layer), expert: None }
    }

    /// Within this expert of the same block.
    pub(crate) fn expert(self, expert: usize) -> Self {
        Location { expert: Some(expert), ..self }
    }
}

/// A part of one model. It prints as its name in [`Transformer::parameters`](super::Transformer::parameters).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) location: Location,
    pub(crate) part: Part,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.location.layer {
            write!(f, "blocks.{layer}.")?;
        }
        match (self.location.expert, self.part.name().split_once('.')) {
            (Some(expert), Some((component, rest))) => write!(f, "{component}.experts.{expert}.{rest}"),
            _ => f.write_str(self.part.name()),
        }
    }
}
