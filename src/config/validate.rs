//! [`Config::validate`]: what would give NaN, a panic or a silent wrong number later is refused here, by name.

use super::{
    Activation, AttentionDir, ChoiceBias, Config, CrossAttention, Disentangled, DynamicMask, EmbedConfig, ExpertGate,
    ExpertGroups, Experts, GateFunction, GroupRank, HeadConfig, HeadExperts, HeadGate, Heads, LatentAttention,
    LayerEmbedding, MlpKind, NormConfig, NormPosition, Normalization, PerLayer, Positions, QkNorm, Reach, RelativeBias,
    RopeScaling, Rotary, Routing, Scores, Sinusoids, Stack, StreamConfig, StreamFactors, WeightNorm,
};
use crate::{Error, Result};

/// No model has more layers.
pub(crate) const MAX_LAYERS: usize = 1 << 12;
/// No layer has more experts.
const MAX_EXPERTS: usize = 1 << 16;
/// No size is larger than this.
const MAX_SIZE: usize = 1 << 28;
/// No matrix has more entries than this: 4 TB in fp32.
const MAX_ENTRIES: usize = 1 << 40;
/// No table of sines and cosines has more entries than this.
const MAX_TABLE: usize = 1 << 27;
/// No window is larger than this. A window past the context is as good as none, so this is no limit in practice.
const MAX_WINDOW: usize = 1 << 31;
/// Numbers outside of these are 0 or infinite in fp32.
const FP32: [f64; 2] = [f32::MIN_POSITIVE as f64, f32::MAX as f64];
/// Positions times frequencies stay far from infinity within these.
const STRETCH: [f64; 2] = [1e-6, 1e6];

impl Config {
    /// Checks that the numbers fit together, and that none of them makes a forward pass panic or give NaN.
    ///
    /// ```
    /// use tch_lens::Config;
    /// let mut config = Config::new(2, 64, 4, 100, 32);
    /// config.norms.eps = f64::NAN;
    /// let error = config.validate().unwrap_err().to_string();
    /// assert!(error.starts_with("config field `norms.eps` is NaN"));
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`], naming the first field that does not fit.
    pub fn validate(&self) -> Result<()> {
        self.validate_sizes()?;
        self.validate_attention()?;
        self.validate_mlp()?;
        self.validate_norms()?;
        self.validate_stream()?;
        match &self.positions {
            Positions::Rotary(rotations) => {
                self.validate_list("positions", rotations)?;
                // Where layers have heads of other widths, each layer's rotation has to fit its own.
                let checked = if self.has_own_widths() { self.n_layers } else { rotations.values().len() };
                for layer in 0..checked {
                    if let Some(rotary) = self.rotation(layer) {
                        validate_rotary("positions", rotary, self.d_head_of(layer))?;
                    }
                }
                if rotations.values().iter().all(Option::is_none) {
                    return Err(Error::field("positions", "rotary", "no layer rotates: it is `None` then"));
                }
            }
            Positions::Sinusoidal(Sinusoids { offset, steps }) => {
                // The table is computed, so no file bounds it.
                if self.n_ctx.saturating_mul(self.d_model) > MAX_TABLE {
                    let why = format!(
                        "with d_model {} a table of sines and cosines has more than 2^27 entries",
                        self.d_model
                    );
                    return Err(Error::field("n_ctx", self.n_ctx, &why));
                }
                size("positions.steps", *steps, MAX_SIZE)?;
                size("positions.offset", offset.saturating_add(1), MAX_SIZE)?;
                if !self.d_model.is_multiple_of(2) {
                    return Err(Error::field(
                        "d_model",
                        self.d_model,
                        "half of it are sines, half cosines: it must be even",
                    ));
                }
            }
            Positions::Alibi { bias_max, rounded: _ } => between("positions.bias_max", *bias_max, [1e-3, 1e3])?,
            Positions::Learned | Positions::Shortformer | Positions::None => {}
        }
        size("n_ctx", self.n_ctx, MAX_SIZE)?; // after the rotation, whose stretch it may be a product of
        if self.parallel_attn_mlp && self.norms.position != NormPosition::Before {
            return Err(Error::field("parallel_attn_mlp", true, "a parallel block has its norms before it"));
        }
        if let Some(cap) = self.output_logits_soft_cap {
            between("output_logits_soft_cap", cap, FP32)?;
        }
        if self.tie_word_embeddings && self.d_vocab_out != self.d_vocab {
            let why = format!("the unembedding is the embedding, of d_vocab {}", self.d_vocab);
            return Err(Error::field("d_vocab_out", self.d_vocab_out, &why));
        }
        Ok(())
    }

    fn validate_sizes(&self) -> Result<()> {
        size("n_layers", self.n_layers, MAX_LAYERS)?;
        for (field, value) in [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("d_head", self.d_head),
            ("n_key_value_heads", self.n_key_value_heads),
            ("d_vocab", self.d_vocab),
            ("d_vocab_out", self.d_vocab_out),
            ("embed.width", self.d_embed()),
            ("head.width", self.d_unembed()),
            ("embed.token_types", self.embed.token_types.max(1)),
            ("embed.task_types", self.embed.task_types.max(1)),
        ] {
            size(field, value, MAX_SIZE)?;
        }
        if !self.n_heads.is_multiple_of(self.n_key_value_heads) {
            let why = format!("it must divide n_heads, {}", self.n_heads);
            return Err(Error::field("n_key_value_heads", self.n_key_value_heads, &why));
        }
        let heads = self.n_heads * self.d_head;
        if heads > MAX_SIZE {
            return Err(Error::field("d_head", self.d_head, &format!("n_heads · d_head is {heads}, more than 2^28")));
        }
        let n_ctx = if self.has_w_pos() { self.n_ctx } else { 1 };
        let rows = [
            ("d_vocab", self.d_vocab),
            ("d_vocab_out", self.d_vocab_out),
            ("n_ctx", n_ctx),
            ("d_head", 3 * heads),
            ("mlp.d_mlp", self.widest_mlp()),
        ];
        for (field, rows) in rows {
            if rows.saturating_mul(self.d_model) > MAX_ENTRIES {
                let why = format!("with d_model {} it makes a matrix of more than 2^40 entries", self.d_model);
                return Err(Error::field(field, rows, &why));
            }
        }
        Ok(())
    }

    fn validate_attention(&self) -> Result<()> {
        let attention = &self.attention;
        self.validate_list("attention.reach", &attention.reach)?;
        self.validate_list("attention.temperature", &attention.temperature)?;
        self.validate_list("attention.heads", &attention.heads)?;
        for Heads { query, key_value, d_head } in attention.heads.values().iter().flatten() {
            d_head.map_or(Ok(()), |d_head| size("attention.heads.d_head", d_head, MAX_SIZE))?;
            let widest = d_head.unwrap_or(self.d_head).max(self.d_value());
            size("attention.heads.query", *query, MAX_SIZE / widest)?;
            size("attention.heads.key_value", *key_value, *query)?;
            if !query.is_multiple_of(*key_value) {
                let why = format!("it must divide the number of query heads, {query}");
                return Err(Error::field("attention.heads.key_value", key_value, &why));
            }
            if attention.latent.is_some() || matches!(self.positions, Positions::Alibi { .. }) {
                let why = "latent attention and ALiBi have the same heads in all layers";
                return Err(Error::field("attention.heads", "set", why));
            }
        }
        if let Some(experts) = &attention.experts {
            self.validate_head_experts(experts)?;
        }
        if let Some(HeadGate { per_head, function: GateFunction::Router(experts) }) = attention.gate {
            size("attention.gate.function.router.num_experts", experts.num_experts, MAX_EXPERTS)?;
            size("attention.gate.function.router.experts_per_token", experts.experts_per_token, experts.num_experts)?;
            let divides = self.n_heads.is_multiple_of(experts.num_experts) && attention.heads == PerLayer::All(None);
            if !per_head || !divides {
                let why = "each of a router's experts has as many heads, with one gate each";
                return Err(Error::field("attention.gate.function", "router", why));
            }
        }
        self.validate_shared_keys()?;
        if let Some(DynamicMask { keep }) = attention.dynamic_mask {
            size("attention.dynamic_mask.keep", keep, MAX_SIZE)?;
            let shares = attention.shared_keys.values().iter().any(Option::is_some);
            if shares || attention.experts.is_some() || attention.differential || attention.sinks {
                let why = "it goes with no other kind of heads, and without sinks";
                return Err(Error::field("attention.dynamic_mask", "set", why));
            }
        }
        match attention.value_norm {
            Some(Normalization::None) => {
                let why = "leave it out where there is none";
                return Err(Error::field("attention.value_norm", "a norm of no kind", why));
            }
            Some(_) if attention.latent.is_some() || attention.qk_norm_after_rotation => {
                let why = "it goes with neither latent attention nor norms after the rotation";
                return Err(Error::field("attention.value_norm", "set", why));
            }
            _ => {}
        }
        if attention.sinks_where_local && !attention.sinks {
            return Err(Error::field("attention.sinks_where_local", true, "there are no sinks"));
        }
        for temperature in attention.temperature.values().iter().flatten() {
            between("attention.temperature.beta", temperature.beta, [0.0, 1e6])?;
            between("attention.temperature.period", temperature.period, [1.0, 1e12])?;
            size("attention.temperature.offset", temperature.offset.saturating_add(1), MAX_SIZE)?;
        }
        for reach in attention.reach.values() {
            if let Reach::Window(width) | Reach::Chunk(width) = reach {
                size("attention.reach", *width, MAX_WINDOW)?;
            }
        }
        for (field, number, bounds) in [
            ("attention.scale", attention.scale, STRETCH),
            ("attention.scores_soft_cap", attention.scores_soft_cap, FP32),
            ("attention.clip_qkv", attention.clip_qkv, FP32),
        ] {
            number.map_or(Ok(()), |number| between(field, number, bounds))?;
        }
        if attention.differential && !self.n_key_value_heads.is_multiple_of(2) {
            return Err(Error::field(
                "n_key_value_heads",
                self.n_key_value_heads,
                "heads come in pairs: it must be even",
            ));
        }
        if attention.sinks_after_pattern && !attention.sinks {
            return Err(Error::field("attention.sinks_after_pattern", true, "there are no sinks"));
        }
        if attention.z_norm == Some(Normalization::None) {
            return Err(Error::field("attention.z_norm", "a norm of no kind", "leave it out where there is none"));
        }
        if attention.qk_norm_where_rotated && attention.qk_norm.is_none() {
            return Err(Error::field(
                "attention.qk_norm_where_rotated",
                true,
                "there are no norms of queries and keys",
            ));
        }
        if attention.qk_norm_after_rotation && (attention.qk_norm.is_none() || self.rotary().is_none()) {
            let why = "there are no norms of queries and keys, or no rotation";
            return Err(Error::field("attention.qk_norm_after_rotation", true, why));
        }
        self.validate_cross()?;
        if let Some(disentangled) = &attention.disentangled {
            self.validate_disentangled(disentangled)?;
        }
        if let Some(bias) = &attention.relative_bias {
            self.validate_relative_bias(*bias)?;
        }
        if let Some(d_value) = attention.d_value {
            size("attention.d_value", d_value, MAX_SIZE / self.n_heads)?;
        }
        if let Some(latent) = &attention.latent {
            self.validate_latent(latent)?;
        }
        match attention.qk_norm {
            Some(QkNorm::PerHead(Normalization::None) | QkNorm::AllHeads(Normalization::None)) => {
                Err(Error::field("attention.qk_norm", "a norm of no kind", "leave it out where there is none"))
            }
            _ => Ok(()),
        }
    }

    /// A decoder, and nothing else, attends to an encoder's output.
    fn validate_cross(&self) -> Result<()> {
        let refuse = |why: &str| Err(Error::field("attention.cross", "set", why));
        match (&self.attention.cross, self.stack) {
            (None, Stack::Blocks | Stack::Encoder) => Ok(()),
            (None, Stack::Decoder) => Err(Error::field("stack", "decoder", "it needs `attention.cross`")),
            (Some(_), Stack::Blocks | Stack::Encoder) => refuse("only a decoder attends to an encoder's output"),
            (Some(CrossAttention { d_encoder }), Stack::Decoder) => {
                size("attention.cross.d_encoder", *d_encoder, MAX_SIZE)?;
                let heads = &self.attention;
                let plain = heads.latent.is_none() && heads.experts.is_none() && heads.heads == PerLayer::All(None);
                if !plain || heads.differential || heads.sinks || self.parallel_attn_mlp || self.mlp.is_none() {
                    return refuse("it goes with plain heads, and with an MLP after it, in all layers");
                }
                Ok(())
            }
        }
    }

    fn validate_disentangled(&self, disentangled: &Disentangled) -> Result<()> {
        size("attention.disentangled.span", disentangled.span, MAX_SIZE / 2)?;
        if let Some(furthest) = disentangled.bucketed_up_to {
            size("attention.disentangled.bucketed_up_to", furthest, MAX_SIZE)?;
            if disentangled.span < 4 || furthest <= disentangled.span / 2 + 1 {
                let why = "buckets need a span of at least 4, and distances beyond its half";
                return Err(Error::field("attention.disentangled.bucketed_up_to", furthest, why));
            }
        }
        let plain = self.attention.latent.is_none()
            && self.attention.experts.is_none()
            && !self.attention.differential
            && self.attention.cross.is_none()
            && self.attention.heads == PerLayer::All(None)
            && self.n_key_value_heads == self.n_heads
            && self.attention.direction == AttentionDir::Bidirectional;
        match plain {
            true => Ok(()),
            false => Err(Error::field(
                "attention.disentangled",
                "set",
                "it goes with plain heads, each with keys and values of its own, whose queries see all positions",
            )),
        }
    }

    fn validate_relative_bias(&self, bias: RelativeBias) -> Result<()> {
        size("attention.relative_bias.buckets", bias.buckets, MAX_SIZE / self.n_heads)?;
        size("attention.relative_bias.max_distance", bias.max_distance, MAX_SIZE)?;
        let (_, exact) = bias.of_direction(self.attention.direction);
        let refuse = |field: &str, value: usize, why: String| {
            Err(Error::field(&format!("attention.relative_bias.{field}"), value, &why))
        };
        if exact == 0 {
            let why = "it must be 2 at least, or 4 where a query sees what follows it".into();
            return refuse("buckets", bias.buckets, why);
        }
        if bias.max_distance <= exact {
            let why = format!("it must be more than the {exact} distances that have buckets of their own");
            return refuse("max_distance", bias.max_distance, why);
        }
        let heads_vary = self.attention.heads != PerLayer::All(None);
        if heads_vary || self.attention.latent.is_some() || self.attention.experts.is_some() {
            return Err(Error::field(
                "attention.relative_bias",
                "set",
                "it goes with the same plain heads in all layers",
            ));
        }
        Ok(())
    }

    /// A list has one entry for each layer.
    fn validate_list<T>(&self, field: &str, list: &PerLayer<T>) -> Result<()> {
        match list {
            PerLayer::Each(layers) if layers.len() != self.n_layers => {
                let why = format!("it must have one entry for each of the {} layers", self.n_layers);
                Err(Error::field(field, format!("a list of {}", layers.len()), &why))
            }
            _ => Ok(()),
        }
    }

    /// Whether some layer's heads have a width of their own.
    fn has_own_widths(&self) -> bool {
        self.attention.heads.values().iter().flatten().any(|heads| heads.d_head.is_some())
    }

    fn validate_shared_keys(&self) -> Result<()> {
        let attention = &self.attention;
        self.validate_list("attention.shared_keys", &attention.shared_keys)?;
        if attention.shared_keys.values().iter().all(Option::is_none) {
            return Ok(());
        }
        let refuse = |value: String, why: &str| Err(Error::field("attention.shared_keys", value, why));
        if attention.latent.is_some() || attention.experts.is_some() || attention.differential {
            return refuse("set".into(), "it goes with no other kind of heads");
        }
        for layer in 0..self.n_layers {
            let Some(source) = self.shares_keys_of(layer) else { continue };
            let value = format!("{source} of layer {layer}");
            if source >= layer || self.shares_keys_of(source).is_some() {
                return refuse(value, "it must be an earlier layer with keys of its own");
            }
            let alike = |layer| (self.heads(layer).key_value, self.d_head_of(layer), self.reach(layer));
            if alike(layer) != alike(source) || self.rotation(layer) != self.rotation(source) {
                return refuse(value, "both layers must have the same keys, reach and rotation");
            }
        }
        Ok(())
    }

    fn validate_stream(&self) -> Result<()> {
        let StreamConfig { layer_embedding, layer_scalars, gains, factors } = &self.stream;
        self.validate_list("stream.factors", factors)?;
        for StreamFactors { attn, mlp } in factors.values().iter().flatten() {
            between("stream.factors.attn", *attn, STRETCH)?;
            between("stream.factors.mlp", *mlp, STRETCH)?;
        }
        let factors = factors.values().iter().any(Option::is_some);
        if factors && *gains {
            return Err(Error::field("stream.gains", true, "there are factors already"));
        }
        let factors = factors || *gains;
        if factors && (self.parallel_attn_mlp || self.attn_only()) {
            let why = "each sublayer has one, so attention and MLP come one after the other";
            return Err(Error::field("stream.factors", "set", why));
        }
        if self.norms.position == NormPosition::InStream && (*layer_scalars || factors || layer_embedding.is_some()) {
            return Err(Error::field("stream", "set", "the stream itself is normalised"));
        }
        let Some(LayerEmbedding { width, d_vocab, activation }) = layer_embedding else { return Ok(()) };
        size("stream.layer_embedding.width", *width, MAX_SIZE)?;
        let rows = self.n_layers.saturating_mul(*width);
        if rows.saturating_mul(self.d_model.max(*d_vocab)) > MAX_ENTRIES {
            let why = "with this width of all layers it makes a matrix of more than 2^40 entries";
            return Err(Error::field("stream.layer_embedding.d_vocab", d_vocab, why));
        }
        if *d_vocab < self.d_vocab {
            let why = format!("each of the {} entries of the vocabulary needs a row", self.d_vocab);
            return Err(Error::field("stream.layer_embedding.d_vocab", d_vocab, &why));
        }
        match activation {
            Activation::SoluLn | Activation::Xielu => {
                let why = "it belongs to an MLP";
                Err(Error::field("stream.layer_embedding.activation", format!("{activation:?}"), why))
            }
            _ if self.normalization_type() == Normalization::None => Err(Error::field(
                "stream.layer_embedding",
                "set",
                "its norm has the kind of the others, and there are none",
            )),
            _ => Ok(()),
        }
    }

    fn validate_head_experts(&self, experts: &HeadExperts) -> Result<()> {
        let HeadExperts { num_experts, experts_per_token } = experts;
        size("attention.experts.num_experts", *num_experts, MAX_EXPERTS)?;
        size("attention.experts.experts_per_token", *experts_per_token, *num_experts)?;
        let attention = &self.attention;
        let alone = attention.latent.is_none() && attention.gate.is_none() && attention.d_value.is_none();
        let refuse = |why: &str| Err(Error::field("attention.experts", "set", why));
        match self.n_heads == self.n_key_value_heads.saturating_mul(*experts_per_token) {
            _ if !alone || attention.differential || attention.heads != PerLayer::All(None) => {
                refuse("it goes with no other kind of heads")
            }
            _ if matches!(attention.qk_norm, Some(QkNorm::AllHeads(_))) || attention.z_norm.is_some() => {
                refuse("norms are of single heads")
            }
            false => refuse("a token's heads are those of its experts, one for each key and value"),
            true => Ok(()),
        }
    }

    fn validate_latent(&self, latent: &LatentAttention) -> Result<()> {
        let refuse = |field, why: &str| Err(Error::field("attention.latent", field, why));
        size("attention.latent.key_value_rank", latent.key_value_rank, MAX_SIZE)?;
        latent.query_rank.map_or(Ok(()), |rank| size("attention.latent.query_rank", rank, MAX_SIZE))?;
        between("attention.latent.eps", latent.eps, [FP32[0], 1.0])?;
        match &self.positions {
            _ if self.n_key_value_heads != self.n_heads => refuse("set", "each head has keys and values of its own"),
            Positions::Rotary(PerLayer::All(Some(_))) => Ok(()),
            _ => refuse("set", "all layers have the same rotation"),
        }
    }

    fn validate_mlp(&self) -> Result<()> {
        let Some(mlp) = &self.mlp else { return Ok(()) };
        size("mlp.d_mlp", mlp.d_mlp, MAX_SIZE)?;
        self.validate_list("mlp.widths", &mlp.widths)?;
        for width in mlp.widths.values().iter().flatten() {
            size("mlp.widths", *width, MAX_SIZE)?;
        }
        if mlp.activation == Activation::SoluLn && mlp.kind != MlpKind::Plain {
            return Err(Error::field("mlp.activation", "solu_ln", "it belongs to a plain MLP"));
        }
        if let Some(norm) = mlp.norm {
            if norm == Normalization::None {
                return Err(Error::field("mlp.norm", "a norm of no kind", "leave it out where there is none"));
            }
            if mlp.activation == Activation::SoluLn || matches!(mlp.kind, MlpKind::Experts(_)) {
                let why = "SoLU has a norm of its own, and experts have none";
                return Err(Error::field("mlp.norm", format!("{norm:?}"), why));
            }
        }
        let MlpKind::Experts(experts) = &mlp.kind else { return Ok(()) };
        let Experts { num_experts, experts_per_token, routing, gate, shared, separate_norms, dense } = experts;
        if *separate_norms
            && (shared.is_none_or(|shared| shared.gated)
                || self.norms.position != NormPosition::BeforeAndAfter
                || self.normalization_type().centers()
                || self.normalization_type() == Normalization::None)
        {
            let why = "it needs a shared expert without a gate, and root-mean-square norms before and after sublayers";
            return Err(Error::field("mlp.separate_norms", true, why));
        }
        size("mlp.num_experts", *num_experts, MAX_EXPERTS)?;
        size("mlp.experts_per_token", *experts_per_token, *num_experts)?;
        if let ExpertGate::ClampedSwiglu { alpha, limit } = gate {
            between("mlp.gate.alpha", *alpha, STRETCH)?;
            between("mlp.gate.limit", *limit, FP32)?;
        }
        shared.map_or(Ok(()), |shared| size("mlp.shared.d_mlp", shared.d_mlp, MAX_SIZE))?;
        if let PerLayer::Each(layers) = dense
            && layers.len() != self.n_layers
        {
            let why = format!("it must have one entry for each of the {} layers", self.n_layers);
            return Err(Error::field("mlp.dense", format!("a list of {}", layers.len()), &why));
        }
        for width in dense.values().iter().flatten() {
            size("mlp.dense", *width, MAX_SIZE)?;
        }
        validate_routing(routing, *num_experts, *experts_per_token)
    }

    fn validate_norms(&self) -> Result<()> {
        between("norms.eps", self.norms.eps, [FP32[0], 1.0])?;
        between("norms.last_eps", self.norms.last_eps(), [FP32[0], 1.0])?;
        if self.norms.bare_first_attention
            && (self.norms.kind == Normalization::None
                || !matches!(self.norms.position, NormPosition::Before | NormPosition::BeforeAndAfter))
        {
            return Err(Error::field("norms.bare_first_attention", true, "no attention reads through a norm"));
        }
        if let Some(HeadConfig { activation: activation @ (Activation::SoluLn | Activation::Xielu), .. }) = self.head {
            return Err(Error::field("head.activation", format!("{activation:?}"), "it belongs to an MLP"));
        }
        if self.head.is_some_and(|head| head.norm) && self.norms.kind == Normalization::None {
            return Err(Error::field("head.norm", true, "it has the kind of the others, and there are none"));
        }
        if self.norms.after_mixtures && (self.norms.position != NormPosition::Before || self.experts().is_none()) {
            let why = "mixtures have one where norms stand after the sublayers, and other MLPs have none";
            return Err(Error::field("norms.after_mixtures", true, why));
        }
        let NormConfig { after_embedding, after_full_embed, .. } = self.norms;
        for (field, has) in [("norms.after_embedding", after_embedding), ("norms.after_full_embed", after_full_embed)] {
            if has && self.norms.kind == Normalization::None {
                return Err(Error::field(field, true, "it has the kind of the others, and there are none"));
            }
        }
        if after_embedding && after_full_embed {
            return Err(Error::field(
                "norms.after_full_embed",
                true,
                "the embedding has one norm: `after_embedding` is set",
            ));
        }
        let EmbedConfig { token_types, task_types, token_dropout, .. } = self.embed;
        if task_types > 0 && token_types == 0 {
            return Err(Error::field(
                "embed.task_types",
                task_types,
                "they are added to the types of tokens, and there are none",
            ));
        }
        if let Some(token) = token_dropout.filter(|token| *token >= self.d_vocab) {
            let why = format!("it must be a token, less than d_vocab, {}", self.d_vocab);
            return Err(Error::field("embed.token_dropout", token, &why));
        }
        if after_embedding && self.embed.width.is_some() {
            return Err(Error::field(
                "norms.after_embedding",
                true,
                "with `embed.width`, the norm is `after_full_embed`",
            ));
        }
        Ok(())
    }
}

fn validate_routing(routing: &Routing, num_experts: usize, experts_per_token: usize) -> Result<()> {
    let Routing { scores, logits_soft_cap, choice_bias, groups, normalize, scale, weighs_input: _ } = routing;
    if let Scores::SparseMixer { jitter } = scores {
        between("mlp.routing.jitter", *jitter, [0.0, FP32[1]])?;
        if choice_bias.is_some() || groups.is_some() {
            return Err(Error::field("mlp.routing.scores", "sparse_mixer", "it has neither a bias nor groups"));
        }
    }
    logits_soft_cap.map_or(Ok(()), |cap| between("mlp.routing.logits_soft_cap", cap, FP32))?;
    between("mlp.routing.scale", *scale, STRETCH)?;
    if let Some(WeightNorm { p, min }) = normalize {
        between("mlp.routing.normalize.p", *p, [1e-2, 1e2])?;
        between("mlp.routing.normalize.min", *min, [0.0, FP32[1]])?;
    }
    if *scores == Scores::SoftmaxOfChosen && (*choice_bias == Some(ChoiceBias::OnScores) || groups.is_some()) {
        let why = "experts are chosen before there are scores";
        return Err(Error::field("mlp.routing.scores", "softmax_of_chosen", why));
    }
    let Some(ExpertGroups { groups, kept, rank }) = groups else { return Ok(()) };
    size("mlp.routing.groups.groups", *groups, num_experts)?;
    size("mlp.routing.groups.kept", *kept, *groups)?;
    let refuse = |why: String| Err(Error::field("mlp.routing.groups.groups", groups, &why));
    let of_group = num_experts / groups;
    if !num_experts.is_multiple_of(*groups) {
        return refuse(format!("it must divide num_experts, {num_experts}"));
    }
    if *rank == GroupRank::TwoLargest && of_group < 2 {
        return refuse("a group must have two experts at least, as its two largest scores count".into());
    }
    if experts_per_token > kept * of_group {
        return refuse(format!("the groups kept have {} experts, fewer than experts_per_token", kept * of_group));
    }
    Ok(())
}

fn validate_rotary(place: &str, rotary: &Rotary, d_head: usize) -> Result<()> {
    if let Some(pairs) = rotary.pairs.filter(|pairs| *pairs > rotary.dim / 2) {
        let why = format!("there are {} pairs", rotary.dim / 2);
        return Err(Error::field(&format!("{place}.pairs"), pairs, &why));
    }
    let dim = format!("{place}.dim");
    if rotary.dim == 0 || !rotary.dim.is_multiple_of(2) || rotary.dim > d_head {
        return Err(Error::field(&dim, rotary.dim, &format!("it must be even, from 2 to d_head, {d_head}")));
    }
    // At exactly 1 all pairs turn alike, and YaRN divides by the logarithm.
    between(&format!("{place}.base"), rotary.base, [1.0 + 1e-6, 1e30])?;
    let field = |name: &str| format!("{place}.scaling.{name}");
    let stretch = |name: &str, value: f64| between(&field(name), value, STRETCH);
    let trained = |value: usize| size(&field("original_max_position_embeddings"), value, MAX_SIZE);
    let ordered = |name: &str, higher: f64, lower_name: &str, lower: f64| match higher > lower {
        true => Ok(()),
        false => Err(Error::field(&field(name), higher, &format!("it must be more than {lower_name}, {lower}"))),
    };
    match &rotary.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => stretch("factor", *factor),
        RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
            if rotary.dim == 2 {
                return Err(Error::field(&dim, 2, "a dynamic base needs at least 4: it grows by dim / (dim - 2)"));
            }
            stretch("factor", *factor)?;
            trained(*original_max_position_embeddings)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            stretch("factor", *factor)?;
            stretch("low_freq_factor", *low_freq_factor)?;
            stretch("high_freq_factor", *high_freq_factor)?;
            ordered("high_freq_factor", *high_freq_factor, "low_freq_factor", *low_freq_factor)?;
            trained(*original_max_position_embeddings)
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate: _,
            original_max_position_embeddings,
        } => {
            stretch("factor", *factor)?;
            stretch("attention_factor", *attention_factor)?;
            stretch("beta_fast", *beta_fast)?;
            stretch("beta_slow", *beta_slow)?;
            ordered("beta_fast", *beta_fast, "beta_slow", *beta_slow)?;
            trained(*original_max_position_embeddings)
        }
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings } => {
            for (name, list) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                if list.len() != rotary.dim / 2 {
                    let why = format!("it must have one entry for each of the {} pairs", rotary.dim / 2);
                    return Err(Error::field(&field(name), format!("a list of {}", list.len()), &why));
                }
                list.iter().try_for_each(|divisor| stretch(name, *divisor))?;
            }
            stretch("attention_factor", *attention_factor)?;
            trained(*original_max_position_embeddings)
        }
    }
}

/// A size of at least 1.
fn size(field: &str, value: usize, max: usize) -> Result<()> {
    match (1..=max).contains(&value) {
        true => Ok(()),
        false if max.is_power_of_two() && max > MAX_LAYERS => {
            Err(Error::field(field, value, &format!("it must be between 1 and 2^{}", max.ilog2())))
        }
        false => Err(Error::field(field, value, &format!("it must be between 1 and {max}"))),
    }
}

/// A number within these bounds, so neither NaN nor infinite.
fn between(field: &str, value: f64, [low, high]: [f64; 2]) -> Result<()> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(Error::field(field, value, &format!("it must be a number between {low:e} and {high:e}"))),
    }
}
