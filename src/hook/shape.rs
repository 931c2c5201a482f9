//! The shape and kind of an activation, before it is computed.

use tch::Kind;

use super::point::HookPoint;
use super::site::Extent;
use crate::config::{AttachedDictionary, HeadGate, QkNorm};
use crate::tensor::span::Span;
use crate::Config;

impl HookPoint {
    /// The shape of the activation in a run of `batch` rows of `pos` positions, or of the positions of a [`Span`].
    ///
    /// Of an expert, it has the most rows that can be routed to it: all of them. Of cross-attention, it has as many keys as the row
    /// has positions. A size beyond `i64::MAX` is `i64::MAX`.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, Span};
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache([[1, 2, 3], [4, 5, 6]].map(Vec::from).to_vec())?;
    /// let point = hook::pattern(0);
    /// assert_eq!(cache.get(point)?.size(), point.shape(model.config(), 2, 3)); // [batch, head, query, key]
    /// assert_eq!(point.shape(model.config(), 2, Span { past: 10, new: 3 })[2..], [3, 13]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn shape(self, config: &Config, batch: usize, pos: impl Into<Span>) -> Vec<i64> {
        let span = pos.into();
        self.shape_beside(config, batch, span, span.new)
    }

    /// [`HookPoint::shape`], beside an encoder's output of `encoder_positions` positions.
    pub(crate) fn shape_beside(self, config: &Config, batch: usize, span: Span, encoder_positions: usize) -> Vec<i64> {
        let size = |extent: &Extent| match extent {
            Extent::EncoderPos => encoder_positions,
            extent => extent.size(config, self, batch, span),
        };
        self.extents(config).iter().map(|extent| i64::try_from(size(extent)).unwrap_or(i64::MAX)).collect()
    }

    /// What each dimension of the activation runs over in a model of this shape.
    pub(crate) fn extents(self, config: &Config) -> &'static [Extent] {
        let row = self.site().row();
        if let (true, Some(hook)) = (row.extents.is_empty(), self.spliced_at()) {
            return hook.extents(config);
        }
        match config.qk_norm() {
            Some(QkNorm::AllHeads(_)) => row.merged,
            _ => row.extents,
        }
    }

    /// The kind of the activation in a model whose weights are of kind `weights`.
    pub(crate) fn kind(self, weights: Kind) -> Kind {
        self.site().row().kind.kind(weights)
    }
}

/// The dictionary whose place a point is.
pub(super) fn dictionary_at(config: &Config, point: HookPoint) -> Option<&AttachedDictionary> {
    let hook = point.spliced_at()?;
    config.dictionaries.at(hook.layer(), hook.site().name())
}

impl Extent {
    /// Its name in sentences.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Extent::Batch => "batch",
            Extent::Pos => "pos",
            Extent::Key => "key",
            Extent::EncoderPos => "encoder_pos",
            Extent::Head => "head",
            Extent::KvHead => "kv_head",
            Extent::Row => "row",
            Extent::DModel => "d_model",
            Extent::DEmbed => "d_embed",
            Extent::DUnembed => "d_unembed",
            Extent::DHead | Extent::DValue => "d_head",
            Extent::Gate => "gate",
            Extent::Ple => "width",
            Extent::DMlp => "d_mlp",
            Extent::Heads => "head · d_head",
            Extent::KvHeads => "kv_head · d_head",
            Extent::DVocabOut => "d_vocab_out",
            Extent::Expert | Extent::HeadExpert => "expert",
            Extent::Chosen | Extent::HeadChosen => "experts_per_token",
            Extent::One => "1",
            Extent::DictionaryIn => "d_in",
            Extent::Feature => "feature",
            Extent::DictionaryOut => "d_out",
        }
    }

    /// How many entries it has at a point.
    pub(crate) fn size(self, config: &Config, point: HookPoint, batch: usize, span: Span) -> usize {
        let moe = config.experts();
        let layer = point.layer().unwrap_or(0);
        let heads = config.heads(layer);
        match self {
            Extent::Batch => batch,
            Extent::Pos => span.new,
            Extent::Key => span.keys(),
            Extent::EncoderPos => span.new,
            Extent::Head => heads.query,
            Extent::KvHead => heads.key_value,
            Extent::Row => batch.saturating_mul(span.new),
            Extent::DModel => config.d_model,
            Extent::DEmbed => config.d_embed(),
            Extent::DUnembed => config.d_unembed(),
            Extent::DHead => config.d_head_of(layer),
            Extent::DValue => config.d_value_of(layer),
            Extent::Ple => config.stream.layer_embedding.map_or(0, |it| it.width),
            Extent::Gate => match config.attention.gate {
                Some(HeadGate { per_head: true, .. }) => 1,
                _ => config.d_value_of(layer),
            },
            Extent::DMlp => match (point.expert(), point.layer()) {
                (None, Some(layer)) => config.neurons_of(layer),
                _ => config.d_mlp(),
            },
            Extent::Heads => heads.query.saturating_mul(config.d_head_of(layer)),
            Extent::KvHeads => heads.key_value.saturating_mul(config.d_head_of(layer)),
            Extent::DVocabOut => config.d_vocab_out,
            Extent::Expert => moe.map_or(0, |moe| moe.num_experts),
            Extent::Chosen => moe.map_or(0, |moe| moe.experts_per_token),
            Extent::HeadExpert => config.attention.experts.map_or(0, |it| it.num_experts),
            Extent::HeadChosen => config.attention.experts.map_or(0, |it| it.experts_per_token),
            Extent::One => 1,
            Extent::DictionaryIn => dictionary_at(config, point).map_or(0, |dictionary| dictionary.d_in),
            Extent::Feature => dictionary_at(config, point).map_or(0, |dictionary| dictionary.d_sae),
            Extent::DictionaryOut => dictionary_at(config, point).map_or(0, |dictionary| dictionary.d_out),
        }
    }
}
