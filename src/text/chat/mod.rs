//! Chat templates: messages to the text that a chat model was trained on.

mod strftime;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::ser::{SerializeMap, Serializer};
use serde::Serialize;

use self::strftime::strftime;
use super::tokenizer::chat_template::DEFAULT;
use super::tokenizer::Tokenizer;
use crate::{Result, TokenizerError};

/// One message of a conversation.
///
/// Made from a pair of role and content, too.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    role: String,
    content: String,
    fields: Vec<(String, serde_json::Value)>,
}

impl ChatMessage {
    /// A message of `role`: `system`, `user`, `assistant`, or what else the model's template knows.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage { role: role.into(), content: content.into(), fields: Vec::new() }
    }

    /// A message of role `system`.
    pub fn system(content: impl Into<String>) -> Self {
        ChatMessage::new("system", content)
    }

    /// A message of role `user`.
    pub fn user(content: impl Into<String>) -> Self {
        ChatMessage::new("user", content)
    }

    /// A message of role `assistant`.
    pub fn assistant(content: impl Into<String>) -> Self {
        ChatMessage::new("assistant", content)
    }

    /// Another field, such as `reasoning_content`, for templates that read it.
    pub fn field(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }
}

impl<R: Into<String>, C: Into<String>> From<(R, C)> for ChatMessage {
    fn from((role, content): (R, C)) -> Self {
        ChatMessage::new(role, content)
    }
}

impl Serialize for ChatMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &self.role)?;
        map.serialize_entry("content", &self.content)?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// How a chat template is applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    generation_prompt: bool,
    template: Option<String>,
    variables: Vec<(String, serde_json::Value)>,
    time: Option<SystemTime>,
}

impl ChatOptions {
    /// transformers' defaults: the tokenizer's default template, without the beginning of an answer.
    pub fn new() -> Self {
        ChatOptions::default()
    }

    /// Whether the text ends with what begins an answer of the model: transformers' `add_generation_prompt`.
    pub fn generation_prompt(mut self, add: bool) -> Self {
        self.generation_prompt = add;
        self
    }

    /// Another of the tokenizer's templates, by its name.
    pub fn template(mut self, name: impl Into<String>) -> Self {
        self.template = Some(name.into());
        self
    }

    /// A variable that the template reads, such as Qwen 3's `enable_thinking`.
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The time that a template prints by `strftime_now`, in UTC; the system's by default.
    pub fn time(mut self, time: SystemTime) -> Self {
        self.time = Some(time);
        self
    }
}

/// How many steps a template may take: a conversation of a thousand messages takes some ten thousand.
const FUEL: u64 = 10_000_000;

/// What a template said by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl Tokenizer {
    /// The text that a conversation is to this model, by its chat template: transformers' `apply_chat_template`.
    ///
    /// The template has the special tokens that the tokenizer's files name (`bos_token`, …), `messages`, `add_generation_prompt`,
    /// `raise_exception`, `strftime_now`, and the methods of Python's strings. The text has its special tokens written out, so encode it
    /// without another BOS token, as [`encode_chat`](Tokenizer::encode_chat) does.
    ///
    /// ```
    /// use tch_lens::{ChatMessage, ChatOptions, HookedTransformer};
    /// let template = "{% for message in messages %}{{ message.role }}: {{ message.content | trim }}{{ eos_token }}{% endfor %}";
    /// let tokenizer = HookedTransformer::toy()?.tokenizer()?.clone().with_chat_template(template);
    /// let text = tokenizer.apply_chat_template(&[ChatMessage::user(" Hello. ")], &ChatOptions::new())?;
    /// assert_eq!(text, "user: Hello.<|endoftext|>");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] without a template, and for a template that is no Jinja or refuses the messages.
    pub fn apply_chat_template(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String> {
        let chat = self.chat_templates();
        let name = options.template.as_deref().unwrap_or(DEFAULT);
        let Some(template) = chat.templates.get(name).and_then(|template| template.as_str()) else {
            let names: Vec<String> = chat.templates.keys().map(|name| format!("`{name}`")).collect();
            let known = match names.as_slice() {
                [] => "give it one with `Tokenizer::with_chat_template`".to_string(),
                names => format!("it has {}", names.join(", ")),
            };
            return Err(
                TokenizerError::NoChatTemplate { name: options.template.clone().unwrap_or_default(), known }.into()
            );
        };
        let mut variables: serde_json::Map<String, serde_json::Value> = chat.variables.clone();
        variables.extend(options.variables.iter().cloned());
        let mut context: indexmap::IndexMap<String, Value> =
            variables.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))).collect();
        context.insert("messages".into(), Value::from(Serde(messages)));
        context.insert("add_generation_prompt".into(), options.generation_prompt.into());
        let environment = environment(options.time.unwrap_or_else(SystemTime::now));
        // Blocks that mark what the model wrote, which only training reads.
        let template = without_generation_blocks(template);
        let rendered =
            environment.template_from_str(&template).and_then(|template| template.render(Value::from_pairs(context)));
        rendered.map_err(|error| TokenizerError::ChatTemplate(sentence(&error)).into())
    }

    /// The tokens of a conversation: [`apply_chat_template`](Tokenizer::apply_chat_template), encoded without another BOS token.
    ///
    /// # Errors
    ///
    /// Those of [`apply_chat_template`](Tokenizer::apply_chat_template) and [`encode`](Tokenizer::encode).
    pub fn encode_chat(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<Vec<i64>> {
        self.encode(&self.apply_chat_template(messages, options)?, false)
    }
}

/// Jinja as transformers sets it up.
fn environment(time: SystemTime) -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<String, minijinja::Error> {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
        Err(error.with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, time).map_err(|what| minijinja::Error::new(ErrorKind::InvalidOperation, what))
    });
    environment.add_filter("tojson", to_json);
    environment
}

/// Python's `json.dumps` without escapes of other alphabets.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonJson)),
        Some(indent) => {
            let indent = " ".repeat(indent.min(80));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
    };
    let failed = |what: String| minijinja::Error::new(ErrorKind::BadSerialization, what);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(json).map_err(|error| failed(error.to_string()))
}

/// JSON in one line, with a space after commas and colons.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `{% generation %}` … `{% endgeneration %}` as blocks that change nothing.
fn without_generation_blocks(template: &str) -> String {
    let mut changed = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start..start + length]);
        let name = tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        changed += before;
        changed += &match name {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_string(),
        };
        rest = &rest[start + length..];
    }
    changed + rest
}

/// What went wrong, as the end of a sentence that begins with the template.
fn sentence(error: &minijinja::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
            return format!("refuses the messages: {}", message.trim_end_matches('.'));
        }
        source = cause.source();
    }
    let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    let what = error.detail().map_or_else(|| error.kind().to_string(), String::from);
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    match error.kind() {
        ErrorKind::SyntaxError => format!("is not valid Jinja{line}: {what}"),
        _ => format!("failed{line}: {what}"),
    }
}
