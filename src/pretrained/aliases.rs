//! The names that TransformerLens' users know: what they are called on the hub.
//!
//! As there, capitals do not matter, and a model's name alone means the model of the organisation that made it. A name that is not
//! here is the hub's own.

/// Organisations, and the models of theirs that TransformerLens names.
const MODELS: &[(&str, &str)] = &[
    ("", "distilgpt2 gpt2 gpt2-large gpt2-medium gpt2-xl"),
    ("01-ai", "Yi-34B Yi-34B-Chat Yi-6B Yi-6B-Chat"),
    ("ai-forever", "mGPT"),
    (
        "allenai",
        "OLMo-1B-hf OLMo-2-0425-1B OLMo-2-1124-7B Olmo-3-1025-7B Olmo-3-1125-32B Olmo-3-32B-Think \
         Olmo-3-7B-Instruct Olmo-3-7B-Think Olmo-3.1-32B-Instruct Olmo-3.1-32B-Think OLMo-7B-hf \
         OLMoE-1B-7B-0924",
    ),
    ("bigcode", "santacoder"),
    ("bigscience", "bloom-1b1 bloom-1b7 bloom-3b bloom-560m bloom-7b1"),
    ("codellama", "CodeLlama-7b-hf CodeLlama-7b-Instruct-hf CodeLlama-7b-Python-hf"),
    ("EleutherAI", "gpt-j-6B gpt-neo-1.3B gpt-neo-125M gpt-neo-2.7B gpt-neox-20b"),
    ("facebook", "opt-1.3b opt-125m opt-13b opt-2.7b opt-30b opt-6.7b opt-66b"),
    (
        "google",
        "gemma-2-27b gemma-2-27b-it gemma-2-2b gemma-2-2b-it gemma-2-9b gemma-2-9b-it gemma-2b gemma-2b-it \
         gemma-3-12b-it gemma-3-12b-pt gemma-3-1b-it gemma-3-1b-pt gemma-3-270m gemma-3-270m-it \
         gemma-3-27b-it gemma-3-27b-pt gemma-3-4b-it gemma-3-4b-pt gemma-7b gemma-7b-it medgemma-27b-it \
         medgemma-27b-text-it medgemma-4b-it medgemma-4b-pt",
    ),
    (
        "meta-llama",
        "Llama-2-13b-chat-hf Llama-2-13b-hf Llama-2-70b-chat-hf Llama-2-7b-chat-hf Llama-2-7b-hf \
         Llama-3.1-70B Llama-3.1-70B-Instruct Llama-3.1-8B Llama-3.1-8B-Instruct Llama-3.2-1B \
         Llama-3.2-1B-Instruct Llama-3.2-3B Llama-3.2-3B-Instruct Llama-3.3-70B-Instruct Meta-Llama-3-70B \
         Meta-Llama-3-70B-Instruct Meta-Llama-3-8B Meta-Llama-3-8B-Instruct",
    ),
    ("microsoft", "phi-1 phi-1_5 phi-2 Phi-3-mini-4k-instruct phi-4"),
    (
        "mistralai",
        "Mistral-7B-Instruct-v0.1 Mistral-7B-v0.1 Mistral-Nemo-Base-2407 Mistral-Small-24B-Base-2501 \
         Mixtral-8x7B-Instruct-v0.1 Mixtral-8x7B-v0.1",
    ),
    ("openai", "gpt-oss-20b"),
    (
        "Qwen",
        "Qwen1.5-0.5B Qwen1.5-0.5B-Chat Qwen1.5-1.8B Qwen1.5-1.8B-Chat Qwen1.5-14B Qwen1.5-14B-Chat \
         Qwen1.5-4B Qwen1.5-4B-Chat Qwen1.5-7B Qwen1.5-7B-Chat Qwen2-0.5B Qwen2-0.5B-Instruct Qwen2-1.5B \
         Qwen2-1.5B-Instruct Qwen2-7B Qwen2-7B-Instruct Qwen2.5-0.5B Qwen2.5-0.5B-Instruct Qwen2.5-1.5B \
         Qwen2.5-1.5B-Instruct Qwen2.5-14B Qwen2.5-14B-Instruct Qwen2.5-32B Qwen2.5-32B-Instruct Qwen2.5-3B \
         Qwen2.5-3B-Instruct Qwen2.5-72B Qwen2.5-72B-Instruct Qwen2.5-7B Qwen2.5-7B-Instruct Qwen3-0.6B \
         Qwen3-0.6B-Base Qwen3-1.7B Qwen3-14B Qwen3-4B Qwen3-8B QwQ-32B-Preview",
    ),
    (
        "roneneldan",
        "TinyStories-1Layer-21M TinyStories-1M TinyStories-28M TinyStories-2Layers-33M TinyStories-33M \
         TinyStories-3M TinyStories-8M TinyStories-Instruct-1M TinyStories-Instruct-28M \
         TinyStories-Instruct-2Layers-33M TinyStories-Instruct-33M TinyStories-Instruct-3M \
         TinyStories-Instruct-8M TinyStories-Instuct-1Layer-21M",
    ),
    ("stabilityai", "stablelm-base-alpha-3b stablelm-base-alpha-7b stablelm-tuned-alpha-3b stablelm-tuned-alpha-7b"),
    (
        "stanford-crfm",
        "alias-gpt2-small-x21 arwen-gpt2-medium-x21 battlestar-gpt2-small-x49 beren-gpt2-medium-x49 \
         caprica-gpt2-small-x81 celebrimbor-gpt2-medium-x81 darkmatter-gpt2-small-x343 durin-gpt2-medium-x343 \
         eowyn-gpt2-medium-x777 expanse-gpt2-small-x777",
    ),
    ("swiss-ai", "Apertus-8B-2509 Apertus-8B-Instruct-2509"),
];

/// Models that have other names as well.
const ALIASES: &[(&str, &str)] = &[
    ("allenai/OLMo-1B-hf", "olmo-1b"),
    ("allenai/OLMo-2-0425-1B", "olmo-2-1b"),
    ("allenai/OLMo-2-1124-7B", "olmo-2-7b"),
    ("allenai/OLMo-7B-hf", "olmo-7b"),
    ("allenai/OLMoE-1B-7B-0924", "olmoe"),
    ("codellama/CodeLlama-7b-hf", "CodeLlamallama-2-7b"),
    ("codellama/CodeLlama-7b-Instruct-hf", "CodeLlama-7b-instruct"),
    ("codellama/CodeLlama-7b-Python-hf", "CodeLlama-7b-python"),
    ("distilgpt2", "distil-gpt2 distill-gpt2 distillgpt2 gpt2-xs"),
    ("EleutherAI/gpt-j-6B", "gpt-j gptj"),
    ("EleutherAI/gpt-neo-1.3B", "gpt-neo-medium neo-medium"),
    ("EleutherAI/gpt-neo-125M", "gpt-neo-small neo neo-small"),
    ("EleutherAI/gpt-neo-2.7B", "gpt-neo-large neo-large"),
    ("EleutherAI/gpt-neox-20b", "gpt-neox neox"),
    ("facebook/opt-1.3b", "opt-medium"),
    ("facebook/opt-125m", "opt opt-small"),
    ("facebook/opt-13b", "opt-xxl"),
    ("facebook/opt-2.7b", "opt-large"),
    ("facebook/opt-30b", "opt-xxxl"),
    ("facebook/opt-6.7b", "opt-xl"),
    ("facebook/opt-66b", "opt-xxxxl"),
    ("gpt2", "gpt2-small"),
    ("meta-llama/Llama-2-13b-chat-hf", "Llama-2-13b-chat"),
    ("meta-llama/Llama-2-13b-hf", "Llama-2-13b"),
    ("meta-llama/Llama-2-70b-chat-hf", "Llama-2-70b-chat meta-llama-2-70b-chat-hf"),
    ("meta-llama/Llama-2-7b-chat-hf", "Llama-2-7b-chat"),
    ("meta-llama/Llama-2-7b-hf", "Llama-2-7b"),
    ("microsoft/Phi-3-mini-4k-instruct", "phi-3"),
    ("mistralai/Mistral-7B-Instruct-v0.1", "mistral-7b-instruct"),
    ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b-instruct mixtral-instruct"),
    ("mistralai/Mixtral-8x7B-v0.1", "mixtral mixtral-8x7b"),
    ("openai/gpt-oss-20b", "gpt-oss"),
    ("Qwen/QwQ-32B-Preview", "qwen-32b-preview"),
    ("roneneldan/TinyStories-1Layer-21M", "tiny-stories-1L-21M"),
    ("roneneldan/TinyStories-1M", "tiny-stories-1M"),
    ("roneneldan/TinyStories-28M", "tiny-stories-28M"),
    ("roneneldan/TinyStories-2Layers-33M", "tiny-stories-2L-33M"),
    ("roneneldan/TinyStories-33M", "tiny-stories-33M"),
    ("roneneldan/TinyStories-3M", "tiny-stories-3M"),
    ("roneneldan/TinyStories-8M", "tiny-stories-8M"),
    ("roneneldan/TinyStories-Instruct-1M", "tiny-stories-instruct-1M"),
    ("roneneldan/TinyStories-Instruct-28M", "tiny-stories-instruct-28M"),
    ("roneneldan/TinyStories-Instruct-2Layers-33M", "tiny-stories-instruct-2L-33M"),
    ("roneneldan/TinyStories-Instruct-33M", "tiny-stories-instruct-33M"),
    ("roneneldan/TinyStories-Instruct-3M", "tiny-stories-instruct-3M"),
    ("roneneldan/TinyStories-Instruct-8M", "tiny-stories-instruct-8M"),
    ("roneneldan/TinyStories-Instuct-1Layer-21M", "tiny-stories-instruct-1L-21M"),
    ("stabilityai/stablelm-base-alpha-3b", "stablelm-base-3b"),
    ("stabilityai/stablelm-base-alpha-7b", "stablelm-base-7b"),
    ("stabilityai/stablelm-tuned-alpha-3b", "stablelm-tuned-3b"),
    ("stabilityai/stablelm-tuned-alpha-7b", "stablelm-tuned-7b"),
    ("stanford-crfm/alias-gpt2-small-x21", "gpt2-mistral-small-a gpt2-stanford-small-a stanford-gpt2-small-a"),
    ("stanford-crfm/arwen-gpt2-medium-x21", "gpt2-medium-small-a gpt2-stanford-medium-a stanford-gpt2-medium-a"),
    ("stanford-crfm/battlestar-gpt2-small-x49", "gpt2-mistral-small-b stanford-gpt2-small-b"),
    ("stanford-crfm/beren-gpt2-medium-x49", "gpt2-medium-small-b gpt2-stanford-medium-b stanford-gpt2-medium-b"),
    ("stanford-crfm/caprica-gpt2-small-x81", "gpt2-mistral-small-c gpt2-stanford-small-c stanford-gpt2-small-c"),
    ("stanford-crfm/celebrimbor-gpt2-medium-x81", "gpt2-medium-small-c stanford-gpt2-medium-c"),
    ("stanford-crfm/darkmatter-gpt2-small-x343", "gpt2-mistral-small-d stanford-gpt2-small-d"),
    ("stanford-crfm/durin-gpt2-medium-x343", "gpt2-medium-small-d gpt2-stanford-medium-d stanford-gpt2-medium-d"),
    ("stanford-crfm/eowyn-gpt2-medium-x777", "gpt2-medium-small-e gpt2-stanford-medium-e stanford-gpt2-medium-e"),
    ("stanford-crfm/expanse-gpt2-small-x777", "gpt2-mistral-small-e stanford-gpt2-small-e"),
    ("swiss-ai/Apertus-8B-2509", "apertus apertus-8b"),
    ("swiss-ai/Apertus-8B-Instruct-2509", "apertus-8b-instruct apertus-instruct"),
];

/// The sizes that Pythia's models were first named by, with embeddings not counted, and those of today.
const PYTHIA_SIZES: &[(&str, &str)] = &[
    ("19m", "70m"),
    ("125m", "160m"),
    ("350m", "410m"),
    ("800m", "1b"),
    ("1.3b", "1.4b"),
    ("2.7b", "2.8b"),
    ("6.7b", "6.9b"),
    ("13b", "12b"),
];

/// A model's name on the hub.
pub(crate) fn resolve(name: &str) -> String {
    let (org, tail) = name.rsplit_once('/').map_or((None, name), |(org, tail)| (Some(org), tail));
    let lower = tail.to_lowercase();
    let of_org = |owner: &str| org.is_none_or(|org| org.eq_ignore_ascii_case(owner));
    if of_org("EleutherAI") && (lower == "pythia" || lower.starts_with("pythia-")) {
        return pythia(&lower);
    }
    for (owner, tails) in MODELS {
        if let Some(tail) = tails.split(' ').find(|tail| of_org(owner) && tail.eq_ignore_ascii_case(&lower)) {
            return join(owner, tail);
        }
    }
    let of = |(model, aliases): &&(&str, &str)| {
        let owner = model.rsplit_once('/').map_or("", |(owner, _)| owner);
        of_org(owner) && aliases.split(' ').any(|alias| alias.eq_ignore_ascii_case(&lower))
    };
    ALIASES.iter().find(of).map_or_else(|| name.into(), |(model, _)| model.to_string())
}

/// The hub's name of a model that this table knows; `None` for any other name.
pub(crate) fn known(name: &str) -> Option<String> {
    let resolved = resolve(name);
    let owned = |(owner, tails): &(&str, &str)| tails.split(' ').any(|tail| join(owner, tail) == resolved);
    let aliased = |(model, _): &(&str, &str)| *model == resolved;
    (MODELS.iter().any(owned) || ALIASES.iter().any(aliased)).then_some(resolved)
}

fn join(owner: &str, tail: &str) -> String {
    match owner {
        "" => tail.into(),
        _ => format!("{owner}/{tail}"),
    }
}

/// `pythia-19m-deduped` to `EleutherAI/pythia-70m-deduped`.
fn pythia(lower: &str) -> String {
    let rest = match lower {
        "pythia" => "70m",
        "pythia-v0" => "70m-v0",
        _ => &lower["pythia-".len()..],
    };
    let (size, rest) = rest.split_at(rest.find('-').unwrap_or(rest.len()));
    let size = PYTHIA_SIZES.iter().find(|(old, _)| *old == size).map_or(size, |(_, new)| new);
    format!("EleutherAI/pythia-{size}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transformer_lens_names_are_the_hubs() {
        for (alias, name) in [
            ("gpt2-small", "gpt2"),
            ("gpt2", "gpt2"),
            ("GPT2-XL", "gpt2-xl"),
            ("distillgpt2", "distilgpt2"),
            ("tiny-stories-1M", "roneneldan/TinyStories-1M"),
            ("tinystories-1m", "roneneldan/TinyStories-1M"),
            ("tiny-stories-instruct-1L-21M", "roneneldan/TinyStories-Instuct-1Layer-21M"),
            ("pythia", "EleutherAI/pythia-70m"),
            ("pythia-70m", "EleutherAI/pythia-70m"),
            ("pythia-19m-deduped-v0", "EleutherAI/pythia-70m-deduped-v0"),
            ("EleutherAI/pythia-1.3b", "EleutherAI/pythia-1.4b"),
            ("pythia-160m-seed2", "EleutherAI/pythia-160m-seed2"),
            ("gpt-neo-125M", "EleutherAI/gpt-neo-125M"),
            ("gptj", "EleutherAI/gpt-j-6B"),
            ("opt", "facebook/opt-125m"),
            ("stanford-gpt2-small-a", "stanford-crfm/alias-gpt2-small-x21"),
            ("Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
            ("meta-llama/llama-2-7b", "meta-llama/Llama-2-7b-hf"),
            ("gemma-2-2b", "google/gemma-2-2b"),
            ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B"),
            ("roneneldan/TinyStories-1M", "roneneldan/TinyStories-1M"),
            // Others' own.
            ("somebody/gpt2-small", "somebody/gpt2-small"),
            ("somebody/pythia-19m", "somebody/pythia-19m"),
            ("my-model", "my-model"),
        ] {
            assert_eq!(resolve(alias), name, "{alias}");
        }
    }

    #[test]
    fn no_name_means_two_models() {
        let mut names: Vec<String> = Vec::new();
        names.extend(MODELS.iter().flat_map(|(_, tails)| tails.split(' ')).map(str::to_lowercase));
        names.extend(ALIASES.iter().flat_map(|(_, aliases)| aliases.split(' ')).map(str::to_lowercase));
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(names.len() > 200);
    }
}
