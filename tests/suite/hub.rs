//! The hub's client, against a small server on loopback that speaks the hub's protocol.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::common::child;
use sha2::{Digest, Sha256};
use tch::Tensor;
use tch_lens::lens::{JacobianLens, LensHub, TunedLens};
use tch_lens::{HookedTransformer, Hub, LensOptions, LoadOptions};

const TOKENS: [i64; 4] = [1, 2, 3, 10];

/// A repository's commit, as the server has it.
#[derive(Clone)]
struct Repo {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// Opened by this token only.
    token: Option<String>,
}

/// What the server does wrong.
#[derive(Default)]
struct Faults {
    /// So many downloads of this file end after so many bytes.
    drops: Option<(String, usize, usize)>,
    /// This file arrives with a byte changed.
    corrupt: Option<String>,
    /// So many requests are answered with 503.
    unavailable: usize,
}

#[derive(Default)]
struct State {
    /// By name and revision.
    repos: BTreeMap<(String, String), Repo>,
    faults: Faults,
    /// `METHOD path range`, in order.
    requests: Vec<String>,
}

/// The hub, on a port of its own; it ends with the process.
struct Server {
    url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, own_url) = (state.clone(), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, url) = (shared.clone(), own_url.clone());
                std::thread::spawn(move || {
                    let _ = answer(stream.unwrap(), &state, &url); // a client may hang up
                });
            }
        });
        Server { url, state }
    }

    /// A server that has one repository, under `main` and its commit.
    fn with(name: &str, repo: Repo) -> Self {
        let server = Server::start();
        server.add(name, "main", repo);
        server
    }

    fn add(&self, name: &str, revision: &str, repo: Repo) {
        let repos = &mut self.state.lock().unwrap().repos;
        repos.insert((name.into(), repo.commit.clone()), repo.clone());
        repos.insert((name.into(), revision.into()), repo);
    }

    fn faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

/// Answers one request, and closes.
fn answer(mut stream: TcpStream, state: &Mutex<State>, url: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_string()),
            None => break,
        };
    }
    let mut state = state.lock().unwrap();
    let range = headers.get("range").cloned().unwrap_or_default();
    state.requests.push(format!("GET {path} {range}").trim_end().to_string());
    if state.faults.unavailable > 0 {
        state.faults.unavailable -= 1;
        return respond(&mut stream, "503 Service Unavailable", &[], b"");
    }
    let token = headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let opens = |repo: &Repo| repo.token.is_none() || repo.token.as_deref() == token;
    let nothing = ("404 Not Found", "RepoNotFound");

    let path = path.split('?').next().unwrap_or_default();
    if let Some(rest) = path.strip_prefix("/api/") {
        let rest = rest.strip_prefix("models/").unwrap_or(rest); // others keep `spaces/` or `datasets/` in their names
        let (name, revision) = rest.split_once("/revision/").unwrap();
        let revision = revision.replace("%2F", "/");
        let (status, code) = match state.repos.get(&(name.into(), revision.clone())) {
            Some(repo) if opens(repo) => {
                let body = info(repo).to_string();
                return respond(&mut stream, "200 OK", &[], body.as_bytes());
            }
            Some(_) => ("401 Unauthorized", "RepoNotFound"),
            None if state.repos.keys().any(|(other, _)| other == name) => ("404 Not Found", "RevisionNotFound"),
            // As the hub: who is nobody does not learn what there is not.
            None if token.is_none() => ("401 Unauthorized", "RepoNotFound"),
            None => nothing,
        };
        return respond(&mut stream, status, &[("X-Error-Code", code)], b"");
    }
    if let Some(rest) = path.strip_prefix("/cdn/") {
        let (name, file) = rest.split_once("/at/").unwrap();
        let repo = state.repos.iter().find(|((other, _), repo)| other == name && repo.files.contains_key(file));
        let mut body = repo.unwrap().1.files[file].clone();
        if state.faults.corrupt.as_deref() == Some(file) {
            *body.last_mut().unwrap() ^= 1;
        }
        return send(&mut stream, &mut state.faults, file, &body, &range, &[]);
    }
    let Some((name, rest)) = path[1..].split_once("/resolve/") else {
        return respond(&mut stream, nothing.0, &[], b"");
    };
    let (revision, file) = rest.split_once('/').unwrap();
    let Some(repo) = state.repos.get(&(name.into(), revision.into())).filter(|repo| opens(repo)).cloned() else {
        return respond(&mut stream, nothing.0, &[("X-Error-Code", nothing.1)], b"");
    };
    let Some(body) = repo.files.get(file) else {
        return respond(&mut stream, nothing.0, &[("X-Error-Code", "EntryNotFound")], b"");
    };
    let etag = format!("\"{}\"", etag(file, body));
    let commit = ("X-Repo-Commit", repo.commit.as_str());
    if is_large(file) {
        // Large files lie elsewhere.
        let location = format!("{url}/cdn/{name}/at/{file}");
        let headers = [commit, ("X-Linked-Etag", etag.as_str()), ("Location", location.as_str()), ("ETag", "\"x\"")];
        return respond(&mut stream, "302 Found", &headers, b"");
    }
    send(&mut stream, &mut state.faults, file, body, &range, &[commit, ("ETag", etag.as_str())])
}

/// A file, or the range of it that was asked for.
fn send(
    stream: &mut TcpStream,
    faults: &mut Faults,
    file: &str,
    body: &[u8],
    range: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<()> {
    let Some((start, end)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return respond(stream, "200 OK", headers, body);
    };
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(body.len(), |end: usize| (end + 1).min(body.len()));
    if start >= end {
        return respond(stream, "416 Range Not Satisfiable", headers, b"");
    }
    let part = &body[start..end];
    let content_range = format!("bytes {start}-{}/{}", end - 1, body.len());
    let mut headers = headers.to_vec();
    headers.push(("Content-Range", &content_range));
    if let Some((_, left, after)) = faults.drops.as_mut().filter(|(other, left, _)| other == file && *left > 0)
        && part.len() > *after
    {
        *left -= 1;
        let after = *after;
        return respond_with(stream, "206 Partial Content", &headers, part, after);
    }
    respond(stream, "206 Partial Content", &headers, part)
}

fn respond(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
    respond_with(stream, status, headers, body, body.len())
}

/// A response of which only `sent` bytes are sent.
fn respond_with(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    sent: usize,
) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n", body.len())?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "\r\n")?;
    stream.write_all(&body[..sent])?;
    stream.flush()
}

fn is_large(file: &str) -> bool {
    [".safetensors", ".bin", ".pt"].iter().any(|end| file.ends_with(end))
}

fn sha256(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A large file's is its SHA-256, a small one's git's name for it; any 40 digits do.
fn etag(file: &str, body: &[u8]) -> String {
    let hash = sha256(body);
    if is_large(file) {
        hash
    } else {
        hash[..40].into()
    }
}

fn info(repo: &Repo) -> serde_json::Value {
    let sibling = |(file, body): (&String, &Vec<u8>)| {
        let mut sibling = serde_json::json!({ "rfilename": file, "size": body.len(), "blobId": etag(file, body) });
        if is_large(file) {
            sibling["lfs"] = serde_json::json!({ "sha256": sha256(body), "size": body.len(), "pointerSize": 130 });
        }
        sibling
    };
    let siblings: Vec<_> = repo.files.iter().map(sibling).collect();
    serde_json::json!({ "id": "x", "sha": repo.commit, "siblings": siblings })
}

fn fixture(name: &str) -> PathBuf {
    crate::common::fixtures().join("torch_files").join(name)
}

/// The files of a folder, and some that no model needs.
fn repo(folder: &str) -> Repo {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for file in std::fs::read_dir(fixture(folder)).unwrap() {
        let file = file.unwrap();
        files.insert(file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap());
    }
    files.insert("README.md".into(), b"A model.".to_vec());
    files.insert("flax_model.msgpack".into(), vec![0; 1000]);
    Repo { commit: "c0ffee".repeat(7)[..40].into(), files, token: None }
}

struct Client {
    cache: tempfile::TempDir,
    hub: Hub,
}

fn client(server: &Server) -> Client {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new().endpoint(&server.url).cache(cache.path()).token(None).offline(false);
    Client { cache, hub }
}

impl Client {
    fn load(&self) -> LoadOptions {
        LoadOptions::new().hub(self.hub.clone())
    }

    fn error(&self, name: &str) -> String {
        self.load().open(name).unwrap_err().to_string()
    }

    /// Everything in the cache that is a file of its own and has bytes.
    fn blobs(&self) -> usize {
        let folder = std::fs::read_dir(self.cache.path()).unwrap().next().unwrap().unwrap().path().join("blobs");
        let is_blob = |path: &Path| path.extension().is_none();
        std::fs::read_dir(folder).unwrap().filter(|entry| is_blob(&entry.as_ref().unwrap().path())).count()
    }
}

fn logits(model: &HookedTransformer) -> Tensor {
    model.forward(TOKENS).unwrap()
}

fn expected() -> Tensor {
    logits(&HookedTransformer::from_pretrained(fixture("gpt2")).unwrap())
}

#[test]
fn a_model_is_found_and_then_cached() {
    let server = Server::with("org/tiny", repo("gpt2"));
    let client = client(&server);
    let model = client.load().open("org/tiny").unwrap();
    assert!(logits(&model).equal(&expected()));
    assert_eq!(model.config().model_name, "tiny");
    let requests = server.requests();
    assert!(requests.iter().any(|request| request.contains("model.safetensors")), "{requests:?}");
    assert!(!requests.iter().any(|request| request.contains("README") || request.contains("flax")), "{requests:?}");

    // A second time, nothing is asked; nor offline, nor where there is no hub any more.
    assert!(logits(&client.load().open("org/tiny").unwrap()).equal(&expected()));
    let nowhere = client.hub.clone().endpoint("http://127.0.0.1:1");
    for hub in [client.hub.clone().offline(true), nowhere] {
        assert!(logits(&LoadOptions::new().hub(hub).open("org/tiny").unwrap()).equal(&expected()));
    }
    assert_eq!(server.requests(), [] as [String; 0]);
}

#[test]
fn torch_files_and_shards_are_fetched() {
    for folder in ["gpt2_zip", "gpt2_sharded"] {
        let server = Server::with("org/tiny", repo(folder));
        let client = client(&server);
        assert!(logits(&client.load().open("org/tiny").unwrap()).equal(&expected()), "{folder}");
        assert!(logits(&client.load().open("org/tiny").unwrap()).equal(&expected()), "{folder}");
    }
}

#[test]
fn a_missing_model_says_so() {
    let server = Server::with("org/tiny", repo("gpt2"));
    let client = client(&server);
    let error = client.error("org/none");
    assert_eq!(error, "`org/none` on the hub: there is no such model, or it is private and needs a token: set HF_TOKEN, or log in with `hf auth login`");
    let error = client.load().revision("v9").open("org/tiny").unwrap_err().to_string();
    assert_eq!(error, "`org/tiny` on the hub: it has no revision `v9`");
    let error = client.load().revision("../../v9").open("org/tiny").unwrap_err().to_string();
    assert!(error.contains("cannot be a revision"), "{error}");
    let with_token = LoadOptions::new().hub(client.hub.clone().token(Some("mine")));
    let error = with_token.open("org/none").unwrap_err().to_string();
    assert!(error.contains("private and the token does not open it"), "{error}");

    let mut without = repo("gpt2");
    without.files.remove("model.safetensors");
    server.add("org/empty", "main", without);
    let error = client.error("org/empty");
    assert!(error.ends_with("it has no weights: neither model.safetensors nor pytorch_model.bin"), "{error}");
}

#[test]
fn a_private_model_needs_its_token() {
    let server = Server::with("org/secret", Repo { token: Some("mine".into()), ..repo("gpt2") });
    let client = client(&server);
    assert!(client.error("org/secret").contains("set HF_TOKEN"));
    let load = |token| LoadOptions::new().hub(client.hub.clone().token(Some(token)));
    assert!(load("other").open("org/secret").unwrap_err().to_string().contains("the token does not open it"));
    assert!(logits(&load("mine").open("org/secret").unwrap()).equal(&expected()));
    assert!(!format!("{:?}", load("mine")).contains("mine"), "a token must not be shown");
}

#[test]
fn a_dropped_connection_is_taken_up_where_it_broke() {
    let server = Server::with("org/tiny", repo("gpt2"));
    let client = client(&server);
    server.faults(Faults { drops: Some(("model.safetensors".into(), 2, 1000)), unavailable: 1, ..Faults::default() });
    assert!(logits(&client.load().open("org/tiny").unwrap()).equal(&expected()));
    let requests = server.requests();
    let from = |start: usize| requests.iter().any(|request| request.ends_with(&format!("safetensors bytes={start}-")));
    assert!(from(0) && from(1000) && from(2000), "{requests:?}");
}

#[test]
fn a_connection_that_drops_again_and_again_is_an_error_that_goes_on_later() {
    let server = Server::with("org/tiny", repo("gpt2"));
    let client = client(&server);
    server.faults(Faults { drops: Some(("model.safetensors".into(), 100, 10)), ..Faults::default() });
    let error = client.error("org/tiny");
    assert!(error.contains("`model.safetensors`") && error.ends_with("the next attempt goes on from there"), "{error}");
    server.faults(Faults::default());
    server.requests();
    assert!(logits(&client.load().open("org/tiny").unwrap()).equal(&expected()));
    let requests = server.requests();
    assert!(requests.iter().any(|request| request.ends_with("safetensors bytes=50-")), "{requests:?}");
}

#[test]
fn what_arrives_changed_is_refused() {
    let server = Server::with("org/tiny", repo("gpt2"));
    let client = client(&server);
    server.faults(Faults { corrupt: Some("model.safetensors".into()), ..Faults::default() });
    let error = client.error("org/tiny");
    assert!(error.contains("`model.safetensors` arrived with SHA-256") && error.ends_with("refused"), "{error}");
    assert_eq!(client.blobs(), 1, "only config.json is in the cache");
    server.faults(Faults::default());
    assert!(logits(&client.load().open("org/tiny").unwrap()).equal(&expected()));
}

#[test]
fn offline_without_a_copy_says_so() {
    let server = Server::with("org/tiny", repo("gpt2"));
    let client = client(&server);
    let error = LoadOptions::new().hub(client.hub.clone().offline(true)).open("org/tiny").unwrap_err().to_string();
    assert!(error.contains("it is not in the cache at") && error.ends_with("and this is offline"), "{error}");
    assert_eq!(server.requests(), [] as [String; 0]);
    let nowhere = LoadOptions::new().hub(client.hub.clone().endpoint("http://127.0.0.1:1"));
    let error = nowhere.open("org/tiny").unwrap_err().to_string();
    assert!(error.contains("the hub at http://127.0.0.1:1 cannot be reached"), "{error}");
}

#[test]
fn aliases_revisions_and_steps_are_revisions_on_the_hub() {
    let server = Server::with("roneneldan/TinyStories-1M", repo("gpt2"));
    let client = client(&server);
    let model = client.load().open("tiny-stories-1M").unwrap();
    assert_eq!(model.config().model_name, "TinyStories-1M");

    let other = Repo { commit: "beef".repeat(10), ..repo("gpt2_zip") };
    server.add("EleutherAI/pythia-70m", "step1000", other.clone());
    server.add("org/tiny", "a/branch", other.clone());
    server.requests();
    client.load().checkpoint_step(1000).open("pythia-70m").unwrap();
    client.load().checkpoint_index(11).open("pythia").unwrap(); // the same, from the cache
    client.load().revision("a/branch").open("org/tiny").unwrap();
    client.load().revision(other.commit).open("org/tiny").unwrap(); // the same again
    let requests = server.requests();
    let infos: Vec<_> = requests.iter().filter(|request| request.contains("/api/")).collect();
    assert_eq!(infos.len(), 2, "{infos:?}");
    assert!(infos[0].contains("/api/models/EleutherAI/pythia-70m/revision/step1000"), "{infos:?}");

    let error = client.load().checkpoint_step(1).revision("x").open("pythia").unwrap_err().to_string();
    assert!(error.contains("not both"), "{error}");
    let error = client.load().checkpoint_step(3).open("pythia").unwrap_err().to_string();
    assert!(error.ends_with("no checkpoint of step 3: the nearest are of step 2 and 4"), "{error}");
}

/// The environment is the process', so this is one of its own.
#[test]
fn the_environment_says_which_hub_cache_and_token() {
    if child::argument().is_some() {
        let model = HookedTransformer::from_pretrained("gpt2-small").unwrap();
        assert!(logits(&model).equal(&expected()));
        return;
    }
    let server = Server::with("gpt2", Repo { token: Some("mine".into()), ..repo("gpt2") });
    let home = tempfile::tempdir().unwrap();
    let run = |variables: &[(&str, &str)]| {
        child::run("hub::the_environment_says_which_hub_cache_and_token", "", |child| {
            for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"] {
                child.env_remove(name);
            }
            child.env("HF_HOME", home.path()).envs(variables.iter().copied());
        })
    };
    let refused = |variables: &[(&str, &str)], why: &str| {
        let text = run(variables).expect_err("the hub gave a model without its token");
        assert!(text.contains(why), "not refused because of its token:\n{text}");
    };
    let endpoint = ("HF_ENDPOINT", server.url.as_str());
    refused(&[endpoint], "needs a token");
    std::fs::write(home.path().join("token"), "mine\n").unwrap();
    refused(&[endpoint, ("HF_TOKEN", "other")], "the token does not open it"); // HF_TOKEN comes first
    run(&[endpoint]).expect("the token of `hf auth login`");
    assert!(home.path().join("hub/models--gpt2/refs/main").is_file());
    server.requests();
    run(&[("HF_HUB_OFFLINE", "1")]).unwrap();
    assert_eq!(server.requests(), [] as [String; 0]);
}

/// A dictionary in a folder of a repository: only the files of that folder come.
#[test]
fn a_dictionary_of_a_folder_is_fetched() {
    let of = |file: &str| std::fs::read(crate::common::fixtures().join("sae/toy_standard").join(file)).unwrap();
    let mut files = BTreeMap::new();
    for file in ["cfg.json", "sae_weights.safetensors"] {
        files.insert(format!("saes/layer_1/{file}"), of(file));
        files.insert(format!("saes/layer_2/{file}"), of(file));
    }
    let server = Server::with("org/saes", Repo { commit: "5ae".repeat(14)[..40].into(), files, token: None });
    let client = client(&server);
    let options = tch_lens::DictionaryOptions::new().hub(client.hub.clone());
    let sae = options.open_hub("org/saes", "saes/layer_1").unwrap();
    assert_eq!(sae.hook_in().to_string(), "blocks.1.hook_resid_pre");
    let requests = server.requests();
    assert!(!requests.iter().any(|request| request.contains("layer_2")), "{requests:?}");
    let offline = options.clone().hub(client.hub.clone().offline(true));
    assert_eq!(offline.open_hub("org/saes", "saes/layer_1").unwrap().d_sae(), sae.d_sae());
    for (folder, what) in [("saes/layer_3", "saes/layer_3"), ("../saes", "../saes")] {
        let error = options.open_hub("org/saes", folder).unwrap_err().to_string();
        assert!(error.contains(what) && !error.contains('\n'), "{error}");
    }
}

/// circuit-tracer's `config.yaml` can list a file of the hub for each layer, in its own format or in those of Gemma Scope.
#[test]
fn a_list_of_transcoders_is_fetched_file_by_file() {
    let sae = crate::common::fixtures().join("sae");
    let first = |folder: std::path::PathBuf| std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let npz = first(sae.join("gemma_scope_transcoder/layer_1/width_16k")).join("params.npz");
    let of_two = first(sae.join("gemma_scope2_transcoder/transcoder")).join("params.safetensors");
    let mut files = BTreeMap::from([("unused/params.npz".to_string(), vec![0; 100])]);
    files.insert("layer_0/params.npz".into(), std::fs::read(&npz).unwrap());
    let server = Server::with("org/scope", Repo { commit: "5ae".repeat(14)[..40].into(), files, token: None });
    let files = BTreeMap::from([("layer_1/params.safetensors".to_string(), std::fs::read(&of_two).unwrap())]);
    server.add("org/scope", "v2", Repo { commit: "abc".repeat(14)[..40].into(), files, token: None });
    let mut client = client(&server);
    let folder = tempfile::tempdir().unwrap();
    let write = |list: &str| {
        let hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n";
        let text = format!("model_kind: transcoder_set\nmodel_name: x\n{hooks}transcoders:\n{list}");
        std::fs::write(folder.path().join("config.yaml"), text).unwrap();
    };
    let listed = "- \"hf://org/scope/layer_0/params.npz\"\n- hf://org/scope/layer_1/params.safetensors?revision=v2\n- third.npz\n";
    std::fs::copy(&npz, folder.path().join("third.npz")).unwrap();
    write(listed);
    let open = |client: &Client| {
        tch_lens::DictionaryOptions::new().hub(client.hub.clone()).decoders_on_demand().open_set(folder.path())
    };
    let set = open(&client).unwrap();
    let requests = server.requests();
    assert!(!requests.iter().any(|request| request.contains("unused")), "{requests:?}");
    let alone = tch_lens::DictionaryOptions::new()
        .hook_in(tch_lens::hook::mlp_hook_in(0))
        .hook_out(tch_lens::hook::mlp_out(0))
        .open(&npz)
        .unwrap();
    for layer in [0, 2] {
        let found = set.of_layer(layer).unwrap();
        assert_eq!(found.hook_in(), tch_lens::hook::mlp_hook_in(layer));
        assert!(found.w_dec().unwrap().equal(&alone.w_dec().unwrap()) && found.w_enc().equal(&alone.w_enc()));
    }
    assert!(set.of_layer(1).unwrap().w_skip().is_some());
    // All of it is in the cache now.
    client.hub = client.hub.clone().offline(true);
    assert_eq!(open(&client).unwrap().n_features(), set.n_features());
    assert_eq!(server.requests(), [] as [String; 0]);
    for (list, wanted) in [
        ("- hf://org/scope/layer_9/params.npz\n", "this is offline"),
        ("- hf://org/scope\n", "neither a path nor"),
        ("- hf://org/scope/../secret.npz\n", "../secret.npz"),
        ("- missing.npz\n", "missing.npz"),
        ("[]\n", ""),
    ] {
        write(list);
        let error = open(&client).unwrap_err().to_string();
        assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
    }
    client.hub = client.hub.clone().offline(false);
    write("- hf://org/scope/layer_9/params.npz\n");
    let error = open(&client).unwrap_err().to_string();
    assert!(error.contains("layer_9/params.npz"), "{error}");
}

/// Lenses by their names: a tuned lens is a folder of a space, and a Jacobian lens a file of a repository. Nothing else comes.
#[test]
fn lenses_are_fetched_by_name() {
    let model = crate::common::raw("gpt2");
    let (layers, width) = (model.config().n_layers, model.config().d_model as i64);
    let folder = tempfile::tempdir().unwrap();
    let wave = |n: i64| (Tensor::arange(n * width, (tch::Kind::Float, tch::Device::Cpu)) * 0.37).sin() * 0.1;
    let maps = (0..layers).flat_map(|layer| {
        let (weight, bias) = (wave(width).view([width, width]) * (1 + layer as i64), wave(1));
        [(format!("{layer}.weight"), weight), (format!("{layer}.bias"), bias)]
    });
    Tensor::write_safetensors(&maps.collect::<Vec<_>>(), folder.path().join("params.safetensors")).unwrap();
    let config =
        format!(r#"{{ "d_model": {width}, "num_hidden_layers": {layers}, "base_model_name_or_path": "tiny" }}"#);
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let mut files = BTreeMap::from([("app.py".into(), b"a space's program".to_vec())]);
    for file in ["config.json", "params.safetensors"] {
        for name in ["tiny", "other"] {
            files.insert(format!("lens/{name}/{file}"), std::fs::read(folder.path().join(file)).unwrap());
        }
    }
    let commit = "1e45".repeat(10);
    let server = Server::with("spaces/org/tuned", Repo { commit: commit.clone(), files, token: None });
    let file = "gpt2-small/jlens/gpt2_jacobian_lens.pt";
    let published = crate::common::fixtures().join("lenses/jacobian_gpt2.pt");
    let bytes = std::fs::read(&published).unwrap();
    let expected = JacobianLens::open(&model, &published).unwrap();
    let files = BTreeMap::from([(file.to_string(), bytes), ("gpt2-small/b.pt".into(), vec![0; 9])]);
    server.add("org/jacobian", "main", Repo { commit, files, token: None });
    let client = client(&server);
    let published = |repository: &str| LensHub::new().hub(client.hub.clone()).repository(repository);
    let offline = |lens: LensHub| lens.hub(client.hub.clone().offline(true));

    let (_, cache) = model.run_with_cache([5i64, 14, 3]).unwrap();
    let read_tuned = |lens: &TunedLens| lens.read(&cache, LensOptions::new()).unwrap().logits();
    let read = |lens: &JacobianLens| lens.read(&cache, LensOptions::new()).unwrap().logits();
    let here = read_tuned(&TunedLens::open(&model, folder.path()).unwrap());
    let tuned = published("spaces/org/tuned").tuned(&model, "tiny").unwrap();
    assert_eq!((read_tuned(&tuned), tuned.base_model()), (here.shallow_clone(), Some("tiny")));
    let requests = server.requests();
    assert!(requests[0].starts_with("GET /api/spaces/org/tuned/revision/main"), "{requests:?}");
    assert!(requests.iter().all(|request| !request.contains("other") && !request.contains("app.py")), "{requests:?}");
    assert_eq!(read_tuned(&offline(published("spaces/org/tuned")).tuned(&model, "tiny").unwrap()), here);

    let expected = read(&expected);
    assert_eq!(read(&published("org/jacobian").jacobian(&model, file).unwrap()), expected);
    assert!(!server.requests().iter().any(|request| request.contains("b.pt")));
    assert_eq!(read(&offline(published("org/jacobian")).jacobian(&model, file).unwrap()), expected);

    let said = |result: tch_lens::Result<()>, what: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, tch_lens::Error::Hub { .. }), "{error}");
        assert!(error.to_string().contains(what) && !error.to_string().contains('\n'), "{error}");
    };
    said(published("spaces/org/tuned").tuned(&model, "gpt3").map(drop), "lens/gpt3/ (with a lens in it)");
    said(published("spaces/org/tuned").tuned(&model, "../lens/tiny").map(drop), "lens/../lens/tiny");
    said(published("org/jacobian").jacobian(&model, "gpt2-small").map(drop), "gpt2-small");
    said(published("org/jacobian").jacobian(&model, "/etc/passwd").map(drop), "/etc/passwd");
    said(published("org/tuned").tuned(&model, "tiny").map(drop), "org/tuned"); // a model's repository, which is not there
    said(published("org/jacobian").revision("v2").jacobian(&model, file).map(drop), "v2");
    said(offline(published("org/jacobian")).jacobian(&model, "gpt2-small/b.pt").map(drop), "offline");
    // A connection that drops is taken up again, and what arrives changed is refused.
    let again = self::client(&server);
    server.faults(Faults { corrupt: Some(file.into()), ..Faults::default() });
    let damaged = LensHub::new().hub(again.hub.clone()).repository("org/jacobian").jacobian(&model, file);
    said(damaged.map(drop), "SHA-256");
    server.faults(Faults { unavailable: 1, ..Faults::default() });
    let once_more = LensHub::new().hub(again.hub.clone()).repository("org/jacobian").jacobian(&model, file).unwrap();
    assert_eq!(read(&once_more), expected);
}

/// A repository of GGUF files: the only model, or the one that is named, of one file or of several parts.
#[test]
fn repositories_of_gguf_files() {
    let quantized = |folder: &str, file: &str| {
        std::fs::read(crate::common::fixtures().join("quantized").join(folder).join(file)).unwrap()
    };
    let part = |i: usize| format!("model-{i:05}-of-00003.gguf");
    let mut files: BTreeMap<String, Vec<u8>> = (1..=3).map(|i| (part(i), quantized("split", &part(i)))).collect();
    files.insert("mmproj-model.gguf".into(), b"what images go through".to_vec());
    let one = Repo { commit: "c0ffee".repeat(7)[..40].into(), files, token: None };
    let mut two = one.clone();
    two.files.insert("small/qwen.Q4_0.gguf".into(), quantized("qwen2", "model.gguf"));
    let server = Server::with("org/one", one);
    server.add("org/two", "main", two);
    let client = client(&server);
    let whole = LoadOptions::new().open(crate::common::fixtures().join("quantized/llama_bpe")).unwrap();
    assert_eq!(logits(&client.load().open("org/one").unwrap()), logits(&whole));
    let error = client.error("org/two");
    assert!(
        error.ends_with(
            "it has 2 models as GGUF files: choose one with `gguf_file`: `model-00001-of-00003.gguf`, `small/qwen.Q4_0.gguf`"
        ),
        "{error}"
    );
    let load = client.load().gguf_file("small/qwen.Q4_0.gguf");
    assert!(load.open("org/two").is_ok());
    assert!(!server.state.lock().unwrap().requests.iter().any(|request| request.contains("mmproj")));
    let error = client.load().gguf_file("other.gguf").open("org/two").unwrap_err().to_string();
    assert!(error.contains("other.gguf"), "{error}");
    // Once more, without the hub.
    let offline = |load: LoadOptions| load.hub(client.hub.clone().offline(true));
    assert!(offline(load).open("org/two").is_ok());
    assert_eq!(logits(&offline(LoadOptions::new()).open("org/one").unwrap()), logits(&whole));
}
