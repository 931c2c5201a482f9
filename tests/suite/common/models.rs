//! Small models of every kind, in fp64: nothing but a mistake makes a difference there.

use super::{families, Fixture};
use tch::Kind;
use tch_lens::config::{
    Activation, AttentionConfig, MlpConfig, PerLayer, Positions, Reach, RelativeBias, RopeScaling, Rotary,
};
use tch_lens::{Config, HookedTransformer, Init, LoadOptions};

/// Every family of the fixtures, and what no family has.
pub fn in_fp64() -> Vec<(String, HookedTransformer)> {
    let load =
        |family: &String| LoadOptions::new().no_processing().kind(Kind::Double).open(Fixture::folder(family)).unwrap();
    let mut models: Vec<_> = families().into_iter().map(|family| (family.clone(), load(&family))).collect();
    models.extend(extra());
    models
}

/// A fixture of transformers.
pub fn of_transformers(name: &str) -> (String, HookedTransformer) {
    let folder = super::fixtures().join("transformers").join(name);
    (name.to_string(), LoadOptions::new().no_processing().kind(Kind::Double).open(folder).unwrap())
}

/// ALiBi, windows and rotations that depend on the length, on models with fresh weights.
pub fn extra() -> Vec<(String, HookedTransformer)> {
    let alibi = Config { positions: Positions::alibi(8.0), ..small() };
    let window = AttentionConfig { reach: PerLayer::All(Reach::Window(2)), ..AttentionConfig::default() };
    let alibi_window = Config { attention: window.clone(), ..alibi.clone() };
    let local = Config { attention: window, ..small() };
    let mut models = vec![("alibi", alibi), ("alibi with a window", alibi_window), ("local", local)];
    let relative = AttentionConfig {
        relative_bias: Some(RelativeBias { buckets: 6, max_distance: 8, per_layer: false }),
        ..AttentionConfig::default()
    };
    models.push(("relative bias", Config { attention: relative, positions: Positions::None, ..small() }));
    models.push(("dynamic", rotary(RopeScaling::Dynamic { factor: 4.0, original_max_position_embeddings: 4 })));
    models.push(("longrope", longrope()));
    models.into_iter().map(|(what, config)| (what.to_string(), fresh(config))).collect()
}

/// Two layers of three heads, with 16 tokens and a context of 16.
pub fn small() -> Config {
    Config { mlp: Some(MlpConfig::plain(32, Activation::GeluNew)), ..Config::new(2, 24, 3, 16, 16) }
}

/// [`small`] with rotary positions.
pub fn rotary(scaling: RopeScaling) -> Config {
    Config { positions: Positions::rotary(Rotary { scaling, ..Rotary::new(8, 100.0) }), ..small() }
}

/// [`small`] with a rotation that is another past four tokens.
pub fn longrope() -> Config {
    rotary(RopeScaling::LongRope {
        short_factor: vec![1.0, 1.1, 1.2, 1.3],
        long_factor: vec![1.5, 2.0, 4.0, 9.0],
        attention_factor: 1.2,
        original_max_position_embeddings: 4,
    })
}

/// A model with fresh weights, large enough for patterns that are no averages, in fp64.
pub fn fresh(config: Config) -> HookedTransformer {
    let init = Init::Gpt2 { std: Some(0.3) };
    let weights = HookedTransformer::init_with(config.clone(), init, 0).unwrap().state_dict().unwrap();
    LoadOptions::new().no_processing().kind(Kind::Double).state_dict(config, weights).unwrap()
}
