//! Architectures of transformers that are not supported, and why: what each needs would bend the design.

const STREAMS: &str = "several residual streams run side by side, and here a model has one";
const LOOPS: &str = "the same layers run several times, and here a layer runs once";
const CHOSEN_BLOCKS: &str =
    "each query sees only blocks of keys that a network of its own chooses for each head, and here keys are chosen one by one";
const RESCALED_LATENTS: &str = "layers differ in their latents, which are rescaled, and in what chooses their keys";
const GATED_NORMS: &str =
    "what a norm gives is multiplied by gates made of it, and here what reads a norm is linear at its scale";
const TWO_ATTENTIONS: &str = "a block has two attentions, and here it has one";
const STATE: &str = "a state that passes from token to token stands in for attention";

const CAPACITY: &str = "experts have no gates and take only so many tokens, so what a token gets depends on others";
const BLOCKS_OF_KEYS: &str =
    "attention is to blocks of keys, and to some keys drawn or made of others, and here masks are fixed";
const BOTTLENECKS: &str = "blocks narrow the stream before attention and have several MLPs, and here a block has one";
const OTHER_INPUTS: &str = "tokens come with boxes, shapes or sounds, and here they come with types alone";
const ADAPTERS: &str = "each language has neurons of its own behind the MLPs, and here there are none";
const OTHER_HEAD: &str =
    "its prediction head has two maps without the norm between them, and here it has one map and a norm";
const SCALED_RESIDUALS: &str = "what sublayers add is divided by a number of the depth, which is not supported";
const LANGUAGES: &str = "tokens come with languages, and here they come with types alone";

/// transformers' `model_type`s and what the names of their architectures begin with.
const REFUSED: &[(&[&str], &[&str], &str)] = &[
    (&["gemma3n_text", "gemma3n"], &["Gemma3n"], STREAMS),
    (&["deepseek_v4", "hy_v4"], &["DeepseekV4", "HYV4"], STREAMS),
    (&["hrm_text"], &["HrmText"], LOOPS),
    (&["axk2"], &["AXK2"], GATED_NORMS),
    (&["dots3_note", "dots3_note_text"], &["Dots3Note"], RESCALED_LATENTS),
    (&["minimax_m3_vl_text", "minimax_m3_vl"], &["MiniMaxM3"], CHOSEN_BLOCKS),
    (&["longcat_flash"], &["LongcatFlash"], TWO_ATTENTIONS),
    (&["switch_transformers", "nllb-moe"], &["SwitchTransformers", "NllbMoe"], CAPACITY),
    (&["bigbird_pegasus", "longt5"], &["BigBirdPegasus", "LongT5"], BLOCKS_OF_KEYS),
    (&["mobilebert"], &["MobileBert"], BOTTLENECKS),
    (&["layoutlm", "roc_bert"], &["LayoutLM", "RoCBert"], OTHER_INPUTS),
    (&["xmod"], &["Xmod"], ADAPTERS),
    (&["ultrabert"], &["Ultrabert"], OTHER_HEAD),
    (&["esmc"], &["Esmc"], SCALED_RESIDUALS),
    (&["xlm", "flaubert"], &["XLMWithLM", "FlaubertWithLM"], LANGUAGES),
    (&["mamba", "mamba2", "falcon_mamba", "bamba"], &["Mamba", "FalconMamba", "Bamba"], STATE),
    (
        &["rwkv", "recurrent_gemma", "xlstm", "jamba", "zamba", "zamba2"],
        &["Rwkv", "Recurrent", "xLSTM", "Jamba", "Zamba"],
        STATE,
    ),
    (&["nemotron_h", "falcon_h1", "lfm2", "lfm2_moe"], &["NemotronH", "FalconH1", "Lfm2"], STATE),
    (
        &["qwen3_next", "kimi_linear", "minimax", "bailing_hybrid", "olmo_hybrid"],
        &["Qwen3Next", "KimiLinear", "MiniMaxForCausalLM", "BailingHybrid", "OlmoHybrid"],
        STATE,
    ),
];

/// Why an architecture, or a `model_type` where a file names none, is not supported; `None` where that is not known.
pub(super) fn why(architecture: Option<&str>, model_type: Option<&str>) -> Option<&'static str> {
    let is = |(types, starts, _): &&(&[&str], &[&str], &str)| match (architecture, model_type) {
        (Some(architecture), _) => starts.iter().any(|start| architecture.starts_with(start)),
        (None, Some(model_type)) => types.contains(&model_type),
        (None, None) => false,
    };
    REFUSED.iter().find(is).map(|(.., why)| *why)
}
