//! Heads, patterns, keys and values.

use super::{between, size, FP32, MAX_EXPERTS, MAX_SIZE, MAX_WINDOW, STRETCH};
use crate::config::{
    AttentionDir, Config, CrossAttention, Disentangled, DynamicMask, GateFunction, HeadExperts, HeadGate, Heads,
    Indexer, LatentAttention, Normalization, PerLayer, Positions, QkNorm, Reach, RelativeBias, Stack,
};
use crate::{Error, Result};

impl Config {
    pub(super) fn validate_attention(&self) -> Result<()> {
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
        if let Some(indexer) = &attention.indexer {
            self.validate_indexer(indexer)?;
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

    fn validate_indexer(&self, indexer: &Indexer) -> Result<()> {
        let Indexer { n_heads, d_head, keep, adjacent_pairs: _, shares_choice } = indexer;
        size("attention.indexer.n_heads", *n_heads, MAX_SIZE)?;
        size("attention.indexer.d_head", *d_head, MAX_SIZE / n_heads)?;
        size("attention.indexer.keep", *keep, MAX_SIZE)?;
        self.validate_list("attention.indexer.shares_choice", shares_choice)?;
        if shares_choice.get(0) != Some(&false) {
            let why = "the first layer has no layer before it whose choice it could share";
            return Err(Error::field("attention.indexer.shares_choice", "true of layer 0", why));
        }
        let rotated = self.rotary_dim().unwrap_or(0);
        if *d_head < rotated {
            let why = format!("it must be {rotated} at least, as so many dimensions rotate");
            return Err(Error::field("attention.indexer.d_head", d_head, &why));
        }
        let attention = &self.attention;
        let has_latent = attention.latent.is_some_and(|latent| latent.query_rank.is_some());
        let reaches_all = attention.reach.values().iter().all(|reach| *reach == Reach::Global);
        match has_latent && reaches_all && attention.direction == AttentionDir::Causal {
            true if attention.dynamic_mask.is_none() && !attention.differential => Ok(()),
            _ => {
                let why =
                    "its queries read the latent of attention's, which look at all earlier positions with plain heads";
                Err(Error::field("attention.indexer", "set", why))
            }
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
}
