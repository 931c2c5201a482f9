//! The shape and size of an activation, before it is computed.

use tch::Kind;

use super::point::{ExpertSite, HookPoint, Site};
use crate::config::QkNorm;
use crate::Config;

impl HookPoint {
    /// The shape of the activation in a run of `batch` rows of `pos` positions.
    ///
    /// Of an expert, it has the most rows that can be routed to it: all of them.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache([[1, 2, 3], [4, 5, 6]].map(Vec::from).to_vec())?;
    /// let point = hook::pattern(0);
    /// assert_eq!(cache.get(point)?.size(), point.shape(model.config(), 2, 3)); // [batch, head, query, key]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn shape(self, config: &Config, batch: usize, pos: usize) -> Vec<i64> {
        use Site::*;
        let flat = |width: usize| vec![batch, pos, width];
        let heads = |heads: usize, width: usize| vec![batch, pos, heads, width];
        let (n_heads, n_kv, d_head) = (config.n_heads, config.n_key_value_heads, config.d_head);
        let together = matches!(config.qk_norm(), Some(QkNorm::AllHeads(_)));
        let moe = config.experts();
        let size = match self {
            HookPoint::Tokens => vec![batch, pos],
            HookPoint::EmbedLnScale | HookPoint::LnFinalScale => flat(1),
            HookPoint::EmbedLnNormalized
            | HookPoint::Embed
            | HookPoint::PosEmbed
            | HookPoint::LnFinalNormalized
            | HookPoint::UnembedIn => flat(config.d_model),
            HookPoint::UnembedOut => flat(config.d_vocab_out),
            HookPoint::Expert { site: ExpertSite::Gate | ExpertSite::Pre | ExpertSite::Post, .. } => {
                vec![batch * pos, config.d_mlp()]
            }
            HookPoint::Block(_, site) => match site {
                ResidPre | AttnOut | ResidMid | MlpIn | MlpOut | ResidPost | Ln1Normalized | Ln1PostNormalized
                | Ln2Normalized | Ln2PostNormalized => flat(config.d_model),
                Ln1Scale | Ln1PostScale | Ln2Scale | Ln2PostScale | MlpLnScale => flat(1),
                AttnIn | QInput | Result => heads(n_heads, config.d_model),
                KInput | VInput => heads(n_kv, config.d_model),
                Q | RotQ | Z => heads(n_heads, d_head),
                K | V | RotK => heads(n_kv, d_head),
                QNormScale | KNormScale if together => flat(1),
                QNormNormalized if together => flat(n_heads * d_head),
                KNormNormalized if together => flat(n_kv * d_head),
                QNormScale => heads(n_heads, 1),
                QNormNormalized => heads(n_heads, d_head),
                KNormScale => heads(n_kv, 1),
                KNormNormalized => heads(n_kv, d_head),
                AttnScores | Pattern => vec![batch, n_heads, pos, pos],
                Pre | PreLinear | Mid | MlpLnNormalized | Post => flat(config.d_mlp()),
                ExpertWeights => flat(moe.map_or(0, |moe| moe.num_experts)),
                ExpertIndices => flat(moe.map_or(0, |moe| moe.experts_per_token)),
            },
        };
        size.into_iter().map(|n| n as i64).collect()
    }

    /// The kind of the activation in a model whose weights are of kind `weights`.
    pub(crate) fn kind(self, weights: Kind) -> Kind {
        use Site::*;
        match self {
            HookPoint::Tokens | HookPoint::Block(_, ExpertIndices) => Kind::Int64,
            HookPoint::Block(_, ExpertWeights) => Kind::Float,
            // Norms are computed in fp32 or better.
            HookPoint::EmbedLnScale
            | HookPoint::LnFinalScale
            | HookPoint::Block(
                _,
                Ln1Scale | Ln1PostScale | Ln2Scale | Ln2PostScale | MlpLnScale | QNormScale | KNormScale,
            ) if matches!(weights, Kind::Half | Kind::BFloat16) => Kind::Float,
            _ => weights,
        }
    }
}
