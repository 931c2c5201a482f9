//! The methods of [`HookedTransformer`] that continue prompts.

use super::{Generated, Generation, StepOptions};
use crate::generate::GenerateOptions;
use crate::hooked_transformer::HookedTransformer;
use crate::text::input::Input;
use crate::{Error, Result};

impl HookedTransformer {
    /// Continues prompts: TransformerLens' `generate`.
    ///
    /// ```
    /// use tch_lens::{GenerateOptions, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(8).stop_string(".");
    /// let generated = model.generate(["The capital of France is", "When Mary and John went to the shop, John gave a"], &options)?;
    /// assert_eq!(generated.rows[0].text(), " Paris");
    /// assert_eq!(generated.rows[0].stop_reason().unwrap().to_string(), "stop string \".\"");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// Rows may have any lengths. Each gets exactly what it gets alone, and ends where it ends alone. A row that fills the model's context ends
    /// with [`StopReason::ContextFull`](crate::StopReason::ContextFull) and keeps what it has.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generation`], and of its steps.
    pub fn generate(&self, input: impl Into<Input>, options: &GenerateOptions) -> Result<Generated> {
        self.generate_with(input, options, StepOptions::new())
    }

    /// Continues prompts, with hooks, caches and other settings of its steps.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generation`], and of its steps.
    pub fn generate_with(
        &self,
        input: impl Into<Input>,
        options: &GenerateOptions,
        steps: StepOptions<'_>,
    ) -> Result<Generated> {
        self.generation(input, options, steps)?.finish()
    }

    /// Continues a text, and gives it with what was generated.
    ///
    /// ```
    /// use tch_lens::{GenerateOptions, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(2);
    /// assert_eq!(model.generate_text("The capital of France is", &options)?, "The capital of France is Paris.");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generate`]; [`Error::Setting`] for several samples.
    pub fn generate_text(&self, prompt: &str, options: &GenerateOptions) -> Result<String> {
        if options.n_samples() > 1 {
            return Err(Error::option_value("samples", options.n_samples(), "one text has one sample: use `generate`"));
        }
        let generated = self.generate(prompt, options)?;
        Ok(generated.rows.iter().fold(prompt.to_string(), |text, row| text + row.text()))
    }

    /// Begins to continue prompts: an iterator over steps, each of which gives the next token of every row. Nothing is run before the first
    /// step.
    ///
    /// ```
    /// use tch_lens::{GenerateOptions, HookedTransformer, StepOptions};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(3);
    /// let mut text = String::new();
    /// for step in model.generation("The capital of France is", &options, StepOptions::new().entropies(true))? {
    ///     let row = &step?.rows[0];
    ///     text += &row.text; // never half a character
    ///     assert!(row.entropy.unwrap() > 0.0);
    /// }
    /// assert!(text.starts_with(" Paris."));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`] and [`GenerateOptions::start`] for prompts and options; [`Error::Setting`] for settings that
    /// contradict each other; [`Error::KeyValueStore`] for a past of another model or batch; [`Error::Unsupported`] for a model whose outputs
    /// are not its vocabulary.
    pub fn generation<'a>(
        &self,
        input: impl Into<Input>,
        options: &GenerateOptions,
        steps: StepOptions<'a>,
    ) -> Result<Generation<'a>> {
        Generation::new(self, input.into(), options, steps)
    }
}
