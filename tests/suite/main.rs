//! All integration tests, in one binary: libtorch's bindings are linked once.
//!
//! Tests share a process. A test that changes what belongs to the whole process (the environment, libtorch's generator
//! or number of threads), or measures it, runs its body in a child process: [`common::child`].

mod common;

mod analysis;
mod analysis_errors;
mod any_patch;
mod any_run;
mod architecture;
mod attribution_graphs;
mod attribution_patching;
mod backward_hooks;
mod budget;
mod changed_runs;
#[cfg(feature = "chat")]
mod chat;
mod circuit_dimensions;
mod circuit_families;
mod circuits;
mod config_bounds;
mod config_fields;
mod dictionaries;
mod dictionary_caches;
mod dictionary_errors;
mod dictionary_formats;
mod dictionary_learning;
mod dictionary_runs;
mod documentation;
mod encoder_decoders;
mod encoder_texts;
mod equivalents;
mod errors;
mod factored;
mod families;
mod generate;
mod generation;
mod gradient_errors;
mod gradients;
mod gradual;
mod half_precision;
mod headless;
mod heads;
mod hook_parts;
mod hooked_encoder;
mod hooks;
#[cfg(feature = "hub")]
mod hub;
mod identities;
mod indexer;
mod init;
mod interventions;
mod key_value_store;
mod known_circuit;
mod lenses;
mod long_context;
mod malformed;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod memory_limits;
mod memory_of_sweeps;
mod metrics;
mod mixtures;
mod mutated_fields;
mod names;
mod padding;
mod parameters;
mod patching;
mod path_patching;
mod positions;
mod probe;
mod processing;
mod quantized;
mod real_models;
mod run_with_grad;
mod running;
mod sampling;
mod saved_caches;
mod settings;
mod shared_keys;
mod sinks;
mod sources;
mod spans;
mod stacks;
mod steering;
mod text;
mod tied;
mod tokens;
#[cfg(feature = "toy")]
mod toy;
#[cfg(feature = "toy")]
mod toy_studies;
mod transformers_families;
#[cfg(feature = "view")]
mod view;
mod weights;
#[cfg(unix)]
mod with_libtorch;
