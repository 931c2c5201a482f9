//! [`Routing`]: how a token is given to some of a mixture's experts.

use serde::{Deserialize, Serialize};

/// How a router's logits choose experts and become their weights.
///
/// The logits become [`scores`](Routing::scores). The experts with the largest scores are chosen, with a trained bias and by
/// groups where the model has these. The scores of the chosen experts are normalised and multiplied by
/// [`scale`](Routing::scale): these are the weights.
///
/// ```
/// use tch_lens::config::{Routing, Scores};
/// let mixtral = Routing::softmax().normalized();
/// assert_eq!((mixtral.scores, mixtral.scale), (Scores::Softmax, 1.0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// What the logits become.
    pub scores: Scores,
    /// Logits are squashed to ± this: `c tanh(x / c)`.
    pub logits_soft_cap: Option<f64>,
    /// A trained bias of each expert that counts for the choice and not for the weights.
    pub choice_bias: Option<ChoiceBias>,
    /// Experts are chosen from the best groups only.
    pub groups: Option<ExpertGroups>,
    /// How the scores of the chosen experts are normalised.
    pub normalize: Option<WeightNorm>,
    /// The weights are multiplied by this.
    pub scale: f64,
    /// An expert's input is multiplied by its weight, not its output (Llama 4).
    pub weighs_input: bool,
}

impl Default for Routing {
    fn default() -> Self {
        Routing::softmax()
    }
}

impl Routing {
    const fn of(scores: Scores) -> Self {
        let (logits_soft_cap, choice_bias, groups, normalize) = (None, None, None, None);
        Routing { scores, logits_soft_cap, choice_bias, groups, normalize, scale: 1.0, weighs_input: false }
    }

    /// The softmax over all experts (OLMoE).
    pub const fn softmax() -> Self {
        Routing::of(Scores::Softmax)
    }

    /// The softmax over the chosen experts (gpt-oss).
    pub const fn softmax_of_chosen() -> Self {
        Routing::of(Scores::SoftmaxOfChosen)
    }

    /// The sigmoid of each logit (DeepSeek 3).
    pub const fn sigmoid() -> Self {
        Routing::of(Scores::Sigmoid)
    }

    /// The same, with weights that sum to one (Mixtral).
    pub const fn normalized(self) -> Self {
        Routing { normalize: Some(WeightNorm { p: 1.0, min: 0.0 }), ..self }
    }

    /// [`Routing::normalized`], if this is true.
    pub const fn normalized_if(self, normalized: bool) -> Self {
        if normalized {
            self.normalized()
        } else {
            self
        }
    }
}

/// What a router's logits become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// Their softmax over all experts.
    #[default]
    Softmax,
    /// Their softmax over the chosen experts.
    SoftmaxOfChosen,
    /// The sigmoid of each.
    Sigmoid,
    /// Experts are chosen one after the other. Each weight is a softmax over the experts that were not chosen before and whose
    /// logits are near the largest of these: within `2 · jitter`, relative to the larger of the two magnitudes
    /// (Liu et al. 2024, "GRIN", as Phi-MoE has it).
    SparseMixer {
        /// Half of the relative distance.
        jitter: f64,
    },
}

/// What a trained bias is added to before experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceBias {
    /// The scores (DeepSeek 3).
    OnScores,
    /// The logits.
    OnLogits,
}

/// Groups of neighbouring experts, of which the best are kept before experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertGroups {
    /// How many groups there are. All have the same number of experts.
    pub groups: usize,
    /// How many of them are kept.
    pub kept: usize,
    /// What makes a group good.
    pub rank: GroupRank,
}

/// What makes a group of experts good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupRank {
    /// Its largest score (DeepSeek 2).
    Largest,
    /// The sum of its two largest scores (DeepSeek 3).
    TwoLargest,
}

/// The scores of the chosen experts are divided by `max(‖scores‖ₚ, min)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightNorm {
    /// The order of the norm. The 1-norm is the sum.
    pub p: f64,
    /// The least divisor; zero for none.
    pub min: f64,
}
