//! What no model can have is an error that names the field; what `Config::validate` lets pass runs, without a NaN.

use tch::Tensor;
use tch_lens::config::{
    Activation, AttentionDir, ChoiceBias, ExpertGate, ExpertGroups, Experts, GateFunction, GroupRank, HeadExperts,
    HeadGate, Heads, LatentAttention, MlpConfig, MlpKind, NormConfig, NormPosition, Normalization, PerLayer, Positions,
    QkNorm, Reach, RelativeBias, RopeScaling, Rotary, Routing, Scores, SharedExpert, Sinusoids, Temperature,
    TemperatureGrowth, WeightNorm,
};
use tch_lens::{Config, Error, HookedTransformer, LoadOptions};

/// A small model with rotary positions.
fn small() -> Config {
    Config { positions: Positions::rotary(Rotary::new(4, 10000.0)), ..Config::new(2, 16, 2, 20, 12) }
}

type Change = Box<dyn Fn(&mut Config)>;

/// A change of the global rotation.
fn rotary(change: impl Fn(&mut Rotary) + 'static) -> Change {
    Box::new(move |config| match &mut config.positions {
        Positions::Rotary(PerLayer::All(Some(rotary))) => change(rotary),
        _ => unreachable!(),
    })
}

fn scaling(scaling: RopeScaling) -> Change {
    rotary(move |rotary| rotary.scaling = scaling.clone())
}

fn yarn(change: impl Fn(&mut [f64; 4], &mut usize) + 'static) -> Change {
    let (mut numbers, mut trained) = ([4.0, 1.1, 32.0, 1.0], 8);
    change(&mut numbers, &mut trained);
    let [factor, attention_factor, beta_fast, beta_slow] = numbers;
    let original_max_position_embeddings = trained;
    scaling(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast,
        beta_slow,
        truncate: true,
        original_max_position_embeddings,
    })
}

fn llama3(factor: f64, low: f64, high: f64, trained: usize) -> Change {
    scaling(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: trained,
    })
}

fn long(short: Vec<f64>, long: Vec<f64>, attention_factor: f64, trained: usize) -> Change {
    scaling(RopeScaling::LongRope {
        short_factor: short,
        long_factor: long,
        attention_factor,
        original_max_position_embeddings: trained,
    })
}

fn experts(num_experts: usize, experts_per_token: usize, gate: ExpertGate) -> MlpConfig {
    let experts = Experts::new(num_experts, experts_per_token, Routing::softmax());
    MlpConfig::experts(8, Activation::Silu, Experts { gate, ..experts })
}

/// A model of four experts, of which each token goes to two, with a change of them.
macro_rules! mixture {
    (|$experts:ident| $change:expr) => {
        |c: &mut Config| {
            let mut $experts = Experts::new(4, 2, Routing::softmax());
            $change;
            c.mlp = Some(MlpConfig::experts(8, Activation::Silu, $experts));
        }
    };
}

/// Numbers that are none, or that fp32 does not have.
const NO_NUMBERS: [f64; 6] = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39];

/// A field of one number.
type Number = (&'static str, fn(&mut Config, f64));

/// Fields of one number: each is refused whatever [`NO_NUMBERS`] it has.
fn numbers() -> Vec<Number> {
    fn global(config: &mut Config) -> &mut Rotary {
        match &mut config.positions {
            Positions::Rotary(PerLayer::All(Some(rotary))) => rotary,
            _ => unreachable!(),
        }
    }
    vec![
        ("norms.eps", |c, x| c.norms.eps = x),
        ("norms.last_eps", |c, x| c.norms.last_eps = Some(x)),
        ("attention.temperature.period", |c, x| temper(c, 0.1, x, 0)),
        ("attention.scale", |c, x| c.attention.scale = Some(x)),
        ("attention.scores_soft_cap", |c, x| c.attention.scores_soft_cap = Some(x)),
        ("attention.clip_qkv", |c, x| c.attention.clip_qkv = Some(x)),
        ("output_logits_soft_cap", |c, x| c.output_logits_soft_cap = Some(x)),
        ("positions.bias_max", |c, x| c.positions = Positions::alibi(x)),
        ("positions.base", |c, x| global(c).base = x),
        ("positions.base", |c, x| {
            c.positions = Positions::Rotary(PerLayer::Each(vec![None, Some(Rotary::new(4, x))]));
        }),
        ("positions.scaling.factor", |c, x| global(c).scaling = RopeScaling::Linear { factor: x }),
        ("positions.scaling.factor", |c, x| {
            global(c).scaling = RopeScaling::Dynamic { factor: x, original_max_position_embeddings: 8 };
        }),
        ("positions.scaling.factor", |c, x| llama3(x, 1.0, 4.0, 8)(c)),
        ("positions.scaling.low_freq_factor", |c, x| llama3(8.0, x, 4.0, 8)(c)),
        ("positions.scaling.high_freq_factor", |c, x| llama3(8.0, 1.0, x, 8)(c)),
        ("positions.scaling.factor", |c, x| yarn(move |numbers, _| numbers[0] = x)(c)),
        ("positions.scaling.attention_factor", |c, x| yarn(move |numbers, _| numbers[1] = x)(c)),
        ("positions.scaling.beta_fast", |c, x| yarn(move |numbers, _| numbers[2] = x)(c)),
        ("positions.scaling.beta_slow", |c, x| yarn(move |numbers, _| numbers[3] = x)(c)),
        ("positions.scaling.short_factor", |c, x| long(vec![1.0, x], vec![1.0; 2], 1.0, 8)(c)),
        ("positions.scaling.long_factor", |c, x| long(vec![1.0; 2], vec![x, 1.0], 1.0, 8)(c)),
        ("positions.scaling.attention_factor", |c, x| long(vec![1.0; 2], vec![1.0; 2], x, 8)(c)),
        ("mlp.gate.alpha", |c, x| {
            c.mlp = Some(experts(4, 2, ExpertGate::ClampedSwiglu { alpha: x, limit: 7.0 }));
        }),
        ("mlp.routing.scale", |c, x| mixture!(|e| e.routing.scale = x)(c)),
        ("mlp.routing.logits_soft_cap", |c, x| mixture!(|e| e.routing.logits_soft_cap = Some(x))(c)),
        ("mlp.routing.normalize.p", |c, x| {
            mixture!(|e| e.routing.normalize = Some(WeightNorm { p: x, min: 0.0 }))(c);
        }),
        ("mlp.gate.limit", |c, x| {
            c.mlp = Some(experts(4, 2, ExpertGate::ClampedSwiglu { alpha: 1.0, limit: x }));
        }),
    ]
}

/// Queries that grow with their position.
fn temper(config: &mut Config, beta: f64, period: f64, offset: usize) {
    config.attention.temperature =
        PerLayer::All(Some(Temperature { beta, period, offset, growth: TemperatureGrowth::default() }));
}

fn groups(groups: usize, kept: usize, rank: GroupRank) -> Option<ExpertGroups> {
    Some(ExpertGroups { groups, kept, rank })
}

fn heads(query: usize, key_value: usize) -> PerLayer<Option<Heads>> {
    PerLayer::All(Some(Heads { query, key_value, d_head: None }))
}

fn relative_bias(buckets: usize, max_distance: usize) -> Option<RelativeBias> {
    Some(RelativeBias { buckets, max_distance, per_layer: false })
}

fn head_experts(num_experts: usize, experts_per_token: usize) -> Option<HeadExperts> {
    Some(HeadExperts { num_experts, experts_per_token })
}

fn routed_gate(per_head: bool, num_experts: usize, experts_per_token: usize) -> Option<HeadGate> {
    let function = GateFunction::Router(HeadExperts { num_experts, experts_per_token });
    Some(HeadGate { per_head, function })
}

fn latent(query_rank: Option<usize>, key_value_rank: usize, eps: f64) -> Option<LatentAttention> {
    Some(LatentAttention { query_rank, key_value_rank, eps })
}

/// Everything else, each with a value that is refused.
fn refused() -> Vec<(&'static str, Change)> {
    fn row(field: &'static str, change: fn(&mut Config)) -> (&'static str, Change) {
        (field, Box::new(change))
    }
    vec![
        row("n_layers", |c| c.n_layers = 0),
        row("n_layers", |c| c.n_layers = 4097),
        row("n_layers", |c| c.n_layers = usize::MAX),
        row("d_model", |c| c.d_model = 0),
        row("d_model", |c| c.d_model = usize::MAX),
        row("n_heads", |c| c.n_heads = 0),
        row("d_head", |c| c.d_head = 0),
        row("d_head", |c| c.d_head = usize::MAX),
        row("d_head", |c| (c.n_heads, c.n_key_value_heads, c.d_head) = (1 << 20, 1, 1 << 20)),
        row("d_head", |c| (c.d_model, c.n_heads, c.n_key_value_heads, c.d_head) = (1 << 14, 1 << 13, 1, 1 << 13)),
        row("n_key_value_heads", |c| c.n_key_value_heads = 0),
        row("attention.gate.function.router.num_experts", |c| c.attention.gate = routed_gate(true, 0, 1)),
        row("attention.gate.function.router.experts_per_token", |c| c.attention.gate = routed_gate(true, 2, 0)),
        row("attention.gate.function.router.experts_per_token", |c| c.attention.gate = routed_gate(true, 2, 3)),
        row("attention.gate.function", |c| c.attention.gate = routed_gate(false, c.n_heads, 1)),
        row("attention.gate.function", |c| c.attention.gate = routed_gate(true, c.n_heads + 1, 1)),
        row("n_key_value_heads", |c| (c.n_heads, c.n_key_value_heads) = (3, 2)),
        row("d_vocab", |c| c.d_vocab = 0),
        row("d_vocab", |c| (c.d_vocab, c.d_model) = (1 << 28, 1 << 20)),
        row("d_vocab_out", |c| c.d_vocab_out = 0),
        row("d_vocab_out", |c| (c.d_vocab_out, c.tie_word_embeddings) = (19, true)),
        row("n_ctx", |c| c.n_ctx = 0),
        row("n_ctx", |c| (c.positions, c.n_ctx, c.d_model) = (Positions::Learned, 1 << 28, 1 << 20)),
        row("mlp.d_mlp", |c| c.mlp = Some(MlpConfig::plain(0, Activation::Relu))),
        row("mlp.d_mlp", |c| c.mlp = Some(MlpConfig::gated(usize::MAX, Activation::Relu))),
        row("mlp.activation", |c| c.mlp = Some(MlpConfig::gated(8, Activation::SoluLn))),
        row("mlp.activation", |c| {
            let experts = MlpKind::Experts(Experts::new(4, 2, Routing::softmax()));
            c.mlp = Some(MlpConfig { kind: experts, ..MlpConfig::plain(8, Activation::SoluLn) });
        }),
        row("mlp.num_experts", |c| c.mlp = Some(experts(0, 0, ExpertGate::Plain))),
        row("mlp.num_experts", |c| c.mlp = Some(experts(usize::MAX, 1, ExpertGate::Plain))),
        row("mlp.experts_per_token", |c| c.mlp = Some(experts(4, 0, ExpertGate::Plain))),
        row("mlp.experts_per_token", |c| c.mlp = Some(experts(4, 5, ExpertGate::Plain))),
        row("mlp.shared.d_mlp", mixture!(|e| e.shared = Some(SharedExpert { d_mlp: 0, gated: false }))),
        row("mlp.dense", mixture!(|e| e.dense = PerLayer::Each(vec![None]))),
        row("mlp.dense", mixture!(|e| e.dense = PerLayer::All(Some(0)))),
        row("mlp.routing.groups.groups", mixture!(|e| e.routing.groups = groups(0, 1, GroupRank::Largest))),
        row("mlp.routing.groups.groups", mixture!(|e| e.routing.groups = groups(3, 1, GroupRank::Largest))),
        row("mlp.routing.groups.groups", mixture!(|e| e.routing.groups = groups(4, 2, GroupRank::TwoLargest))),
        row("mlp.routing.groups.groups", mixture!(|e| e.routing.groups = groups(4, 1, GroupRank::Largest))),
        row("mlp.routing.groups.kept", mixture!(|e| e.routing.groups = groups(2, 0, GroupRank::Largest))),
        row("mlp.routing.groups.kept", mixture!(|e| e.routing.groups = groups(2, 3, GroupRank::Largest))),
        row(
            "mlp.routing.scores",
            mixture!(|e| {
                let choice_bias = Some(ChoiceBias::OnScores);
                e.routing = Routing { choice_bias, ..Routing::softmax_of_chosen() };
            }),
        ),
        row(
            "mlp.routing.scores",
            mixture!(|e| {
                let scores = Scores::SparseMixer { jitter: 0.1 };
                e.routing = Routing { scores, choice_bias: Some(ChoiceBias::OnLogits), ..e.routing };
            }),
        ),
        row("mlp.routing.jitter", mixture!(|e| e.routing.scores = Scores::SparseMixer { jitter: f64::NAN })),
        row("mlp.routing.normalize.min", mixture!(|e| e.routing.normalize = Some(WeightNorm { p: 1.0, min: -1.0 }))),
        row("attention.reach", |c| c.attention.reach = PerLayer::All(Reach::Chunk(0))),
        row("attention.heads", |c| c.attention.heads = PerLayer::Each(vec![None])),
        row("attention.heads.query", |c| c.attention.heads = heads(0, 1)),
        row("attention.heads.key_value", |c| c.attention.heads = heads(4, 3)),
        row("attention.heads.key_value", |c| c.attention.heads = heads(4, 0)),
        row("attention.sinks_where_local", |c| c.attention.sinks_where_local = true),
        row("attention.d_value", |c| c.attention.d_value = Some(0)),
        row("attention.relative_bias.buckets", |c| c.attention.relative_bias = relative_bias(1, 8)),
        row("attention.relative_bias.buckets", |c| {
            c.attention.direction = AttentionDir::Bidirectional;
            c.attention.relative_bias = relative_bias(3, 8);
        }),
        row("attention.relative_bias.max_distance", |c| c.attention.relative_bias = relative_bias(8, 4)),
        row("attention.relative_bias.max_distance", |c| c.attention.relative_bias = relative_bias(8, usize::MAX)),
        row("attention.relative_bias", |c| {
            (c.attention.relative_bias, c.attention.heads) = (relative_bias(8, 12), heads(2, 1));
        }),
        row("attention.experts.num_experts", |c| c.attention.experts = head_experts(usize::MAX, 1)),
        row("attention.experts.experts_per_token", |c| c.attention.experts = head_experts(2, 3)),
        row("attention.experts", |c| (c.n_key_value_heads, c.attention.experts) = (1, head_experts(2, 1))),
        row("attention.experts", |c| {
            (c.attention.experts, c.attention.d_value) = (head_experts(2, 1), Some(8));
        }),
        row("attention.latent.key_value_rank", |c| c.attention.latent = latent(None, 0, 1e-6)),
        row("attention.latent.query_rank", |c| c.attention.latent = latent(Some(0), 4, 1e-6)),
        row("attention.latent.eps", |c| c.attention.latent = latent(None, 4, f64::NAN)),
        row("attention.latent", |c| (c.attention.latent, c.positions) = (latent(None, 4, 1e-6), Positions::Learned)),
        row("attention.latent", |c| (c.attention.latent, c.n_key_value_heads) = (latent(None, 4, 1e-6), 1)),
        row("attention.qk_norm_where_rotated", |c| c.attention.qk_norm_where_rotated = true),
        row("norms.after_mixtures", |c| c.norms.after_mixtures = true),
        row("norms.eps", |c| c.norms.eps = 1e-50), // 0 in fp32
        row("norms.eps", |c| c.norms.eps = 1.5),
        row("norms.after_embedding", |c| {
            c.norms = NormConfig { after_embedding: true, ..NormConfig::new(Normalization::None) };
        }),
        row("norms.position", |c| {
            c.norms = NormConfig { position: NormPosition::InStream, ..NormConfig::new(Normalization::None) };
        }),
        row("parallel_attn_mlp", |c| (c.parallel_attn_mlp, c.norms.position) = (true, NormPosition::After)),
        row("parallel_attn_mlp", |c| (c.parallel_attn_mlp, c.norms.position) = (true, NormPosition::InStream)),
        row("attention.temperature", |c| c.attention.temperature = PerLayer::Each(vec![None])),
        row("attention.temperature.beta", |c| temper(c, -0.1, 4.0, 0)),
        row("attention.temperature.beta", |c| temper(c, f64::NAN, 4.0, 0)),
        row("attention.temperature.offset", |c| temper(c, 0.1, 4.0, usize::MAX)),
        row("attention.sinks_after_pattern", |c| c.attention.sinks_after_pattern = true),
        row("attention.z_norm", |c| c.attention.z_norm = Some(Normalization::None)),
        row("attention.qk_norm_after_rotation", |c| c.attention.qk_norm_after_rotation = true),
        row("attention.qk_norm_after_rotation", |c| {
            c.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
            c.attention.qk_norm_after_rotation = true;
            c.positions = Positions::Learned;
        }),
        row("n_key_value_heads", |c| (c.attention.differential, c.n_key_value_heads) = (true, 1)),
        row("positions", |c| c.positions = Positions::Rotary(PerLayer::All(None))),
        row("positions", |c| c.positions = Positions::Rotary(PerLayer::Each(vec![Some(Rotary::new(4, 100.0))]))),
        row("n_ctx", |c| {
            (c.n_ctx, c.positions) = (1 << 24, Positions::Sinusoidal(Sinusoids { offset: 0, steps: 8 }));
        }),
        row("positions.steps", |c| c.positions = Positions::Sinusoidal(Sinusoids { offset: 0, steps: 0 })),
        row("positions.offset", |c| c.positions = Positions::Sinusoidal(Sinusoids { offset: usize::MAX, steps: 1 })),
        row("d_model", |c| {
            (c.d_model, c.positions) = (15, Positions::Sinusoidal(Sinusoids { offset: 0, steps: 7 }));
        }),
        row("mlp.norm", |c| c.mlp.as_mut().unwrap().norm = Some(Normalization::None)),
        row("mlp.norm", |c| {
            c.mlp = Some(experts(4, 2, ExpertGate::Plain));
            c.mlp.as_mut().unwrap().norm = Some(Normalization::RMS);
        }),
        row("mlp.norm", |c| {
            c.mlp = Some(MlpConfig::plain(8, Activation::SoluLn));
            c.mlp.as_mut().unwrap().norm = Some(Normalization::RMS);
        }),
        row("parallel_attn_mlp", |c| (c.parallel_attn_mlp, c.norms.position) = (true, NormPosition::BeforeAndAfter)),
        row("attention.reach", |c| c.attention.reach = PerLayer::All(Reach::Window(0))),
        row("attention.reach", |c| c.attention.reach = PerLayer::All(Reach::Window(usize::MAX))),
        row("attention.reach", |c| c.attention.reach = PerLayer::Each(vec![Reach::Global])),
        row("attention.reach", |c| c.attention.reach = PerLayer::Each(vec![Reach::Global; 3])),
        row("attention.reach", |c| c.attention.reach = PerLayer::Each(vec![])),
        row("attention.reach", |c| c.attention.reach = PerLayer::Each(vec![Reach::Global, Reach::Window(0)])),
        row("attention.qk_norm", |c| c.attention.qk_norm = Some(QkNorm::PerHead(Normalization::None))),
        row("attention.qk_norm", |c| c.attention.qk_norm = Some(QkNorm::AllHeads(Normalization::None))),
        ("positions.dim", rotary(|rotary| rotary.dim = 0)),
        ("positions.dim", rotary(|rotary| rotary.dim = 3)),
        ("positions.dim", rotary(|rotary| rotary.dim = 10)),
        (
            "positions.dim",
            rotary(|rotary| {
                rotary.dim = 2;
                rotary.scaling = RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 8 };
            }),
        ),
        ("positions.base", rotary(|rotary| rotary.base = 1.0)),
        ("positions.scaling.high_freq_factor", llama3(8.0, 4.0, 4.0, 8)),
        ("positions.scaling.high_freq_factor", llama3(8.0, 4.0, 1.0, 8)),
        ("positions.scaling.beta_fast", yarn(|numbers, _| numbers[2] = numbers[3])),
        ("positions.scaling.original_max_position_embeddings", llama3(8.0, 1.0, 4.0, 0)),
        ("positions.scaling.original_max_position_embeddings", yarn(|_, trained| *trained = 0)),
        ("positions.scaling.original_max_position_embeddings", long(vec![1.0; 2], vec![1.0; 2], 1.0, 0)),
        (
            "positions.scaling.original_max_position_embeddings",
            scaling(RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 0 }),
        ),
        ("positions.scaling.short_factor", long(vec![1.0], vec![1.0; 2], 1.0, 8)),
        ("positions.scaling.long_factor", long(vec![1.0; 2], vec![1.0; 3], 1.0, 8)),
    ]
}

#[track_caller]
fn refuses(field: &str, config: Config) {
    match config.validate() {
        Err(Error::ConfigField { field: found, .. }) => assert_eq!(found, field),
        other => panic!("{field}: {other:?} of {config:?}"),
    }
    // Nothing is made of it either.
    let folder = HookedTransformer::init(config.clone(), 0).map(drop);
    assert!(matches!(folder, Err(Error::ConfigField { .. })), "{field}");
    assert!(matches!(LoadOptions::new().state_dict(config, []).map(drop), Err(Error::ConfigField { .. })), "{field}");
}

#[test]
fn what_no_model_can_have_is_named() {
    small().validate().unwrap();
    let rows = refused();
    for (field, change) in &rows {
        let mut config = small();
        change(&mut config);
        refuses(field, config);
    }
    let numbers = numbers();
    for (field, set) in &numbers {
        for number in NO_NUMBERS {
            let mut config = small();
            set(&mut config, number);
            refuses(field, config);
        }
    }
    println!("{} values of {} fields", rows.len() + NO_NUMBERS.len() * numbers.len(), rows.len() + numbers.len());
}

/// The ends of what is accepted, found by bisection: the smallest and the largest number.
fn ends(set: fn(&mut Config, f64)) -> [f64; 2] {
    let accepted = |number: f64| {
        let mut config = small();
        set(&mut config, number);
        config.validate().is_ok()
    };
    // Some number of these is usual for every field.
    let usual = [1e-5, 2.0, 8.0, 10000.0].into_iter().find(|number| accepted(*number)).unwrap();
    let end = |mut inside: f64, mut outside: f64| {
        while (outside / inside).ln().abs() > 1e-9 {
            let middle = (inside * outside).sqrt();
            *if accepted(middle) { &mut inside } else { &mut outside } = middle;
        }
        inside
    };
    [end(usual, 1e-60), end(usual, 1e60)]
}

#[test]
fn what_is_accepted_gives_numbers() {
    let mut tried = 0;
    for (field, set) in numbers() {
        for number in ends(set) {
            let mut config = small();
            set(&mut config, number);
            if config.experts().is_some() {
                continue; // fresh weights are not made of them
            }
            let model = HookedTransformer::init(config, 0).unwrap();
            let logits: Tensor = model.forward((0..12).collect::<Vec<i64>>()).unwrap();
            assert_eq!(logits.isfinite().all().int64_value(&[]), 1, "{field} of {number:e}");
            tried += 1;
        }
    }
    assert!(tried >= 30, "{tried}");
}
