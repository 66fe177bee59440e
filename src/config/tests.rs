use std::collections::BTreeSet;

use clap::{CommandFactory, Parser};

use super::*;

fn environment() -> Environment {
    Environment { home: Some("/home/someone".into()), ..Environment::default() }
}

fn serve(flags: &[&str]) -> Result<ServeConfig, ConfigProblems> {
    let args = Args::try_parse_from(["polydelta", "serve"].iter().chain(flags)).unwrap();
    match args.command {
        Command::Serve(args) => ServeConfig::resolve(&args, &environment()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Args::command().debug_assert();
}

fn commands(root: clap::Command) -> Vec<clap::Command> {
    let below: Vec<_> = root.get_subcommands().cloned().collect();
    std::iter::once(root).chain(below.into_iter().flat_map(commands)).collect()
}

#[test]
fn every_flag_has_its_variable_and_help() {
    for command in commands(variables::assign(Args::command(), &BTreeSet::new())) {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
            let env = arg.get_env().and_then(|env| env.to_str()).unwrap_or_else(|| panic!("--{long} has no variable"));
            assert!(env.ends_with(&long.replace('-', "_").to_uppercase()), "--{long}: {env}");
            assert!(arg.get_help().is_some(), "--{long} has no help");
        }
    }
}

#[test]
fn serve_flags_are_grouped_by_heading() {
    let args = Args::command();
    let serve = args.get_subcommands().find(|command| command.get_name() == "serve").unwrap();
    for arg in
        serve.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| long != "help" && long != "version"))
    {
        assert!(arg.get_help_heading().is_some(), "{arg}");
    }
}

#[test]
fn a_model_is_enough_and_the_defaults_are_the_documented_ones() {
    let config = serve(&["--model", "/"]).unwrap();
    assert_eq!(config.model, ModelSource::Dir("/".into()));
    assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.store, StoreLocation::Dir("/home/someone/.local/share/polydelta".into()));
    assert_eq!(config.metrics, Some(MetricsListen { address: "127.0.0.1:9464".parse().unwrap(), explicit: false }));
    assert!(config.reflection);
    assert_eq!(config.cache.prefix_cache, PrefixCache::Salted);
    assert!(config.threads >= 1);
    assert_eq!(config.transport.max_concurrent_streams, 256);
    assert_eq!(config.transport.max_local_error_resets, 1024);
    assert_eq!(config.transport.max_message_bytes, 4 << 20);
    assert_eq!(config.transport.handshake_timeout.as_secs(), 10);
    assert_eq!(config.transport.max_connection_age.as_secs(), 3600);
}

#[test]
fn one_client_has_half_of_everything_at_most_where_no_flag_says_more() {
    let transport = |flags: &[&str]| serve(&[&["--model", "/"], flags].concat()).unwrap().transport;
    let default = transport(&[]);
    assert_eq!((default.max_connections, default.max_connections_per_peer), (1024, 256));
    assert_eq!((default.max_calls, default.max_calls_per_peer), (4096, 2048));
    assert_eq!(transport(&["--max-connections", "10"]).max_connections_per_peer, 5);
    assert_eq!(transport(&["--max-connections", "1"]).max_connections_per_peer, 1);
    let gateway = transport(&["--max-connections", "10", "--max-connections-per-peer", "10"]);
    assert_eq!(gateway.max_connections_per_peer, 10);
}

#[test]
fn a_metrics_address_is_explicit_only_where_it_was_given() {
    let config = serve(&["--model", "/", "--metrics-listen", "127.0.0.1:9464"]).unwrap();
    assert!(config.metrics.is_some_and(|metrics| metrics.explicit));
    assert_eq!(serve(&["--model", "/", "--no-metrics"]).unwrap().metrics, None);
}

#[test]
fn the_prefix_cache_is_shared_only_where_that_was_asked_for() {
    let mode = |flags: &[&str]| serve(&[&["--model", "/"], flags].concat()).unwrap().cache.prefix_cache;
    assert_eq!(mode(&["--prefix-cache", "shared"]), PrefixCache::Shared);
    for off in [&["--prefix-cache", "off"][..], &["--prefix-cache", "false"], &["--no-prefix-cache"]] {
        assert_eq!(mode(off), PrefixCache::Off, "{off:?}");
    }
    assert_eq!(mode(&["--prefix-cache", "true"]), PrefixCache::Salted);
}

#[test]
fn layers_are_shared_where_equal_prompts_are_found() {
    let layers = |flags: &[&str]| serve(&[&["--model", "/", "--shared-layers"], flags].concat());
    assert_eq!(layers(&["9"]).unwrap().cache.shared_layers, Some(9));
    for wrong in [&["9", "--prefix-cache", "off"][..], &["0"]] {
        let problems = layers(wrong).unwrap_err().to_string();
        assert!(problems.contains("--shared-layers"), "{problems}");
    }
}

#[test]
fn assembled_kernels_are_kept_in_the_users_cache_unless_another_folder_or_none_is_named() {
    let kept = |flags: &[&str]| serve(&[&["--model", "/"], flags].concat()).map(|config| config.kernel_cache);
    assert_eq!(kept(&[]), Ok(KernelCacheLocation::Dir("/home/someone/.cache/polydelta/kernels".into())));
    assert_eq!(kept(&["--kernel-cache", "/k"]), Ok(KernelCacheLocation::Dir("/k".into())));
    assert_eq!(kept(&["--kernel-cache", "off"]), Ok(KernelCacheLocation::Off));
    let problems = kept(&["--kernel-cache", "/dev/null"]).unwrap_err().0;
    assert!(matches!(&problems[..], [ConfigProblem::Invalid { flag: "--kernel-cache", .. }]), "{problems:?}");
}

#[test]
fn what_is_wrong_with_the_fair_share_is_named() {
    let config = serve(&["--model", "/", "--client-header", "X-Client-Id", "--max-num-seqs", "9"]).unwrap();
    assert_eq!((config.fair_share.client_header.as_deref(), config.fair_share.step_tokens), (Some("x-client-id"), 4));
    let flags =
        ["--client-header", "a b", "--fair-input-weight", "0", "--fair-step-tokens", "0", "--max-priority", "1001"];
    let problems = serve(&[&["--model", "/"], &flags[..]].concat()).unwrap_err().0;
    assert_eq!(problems.len(), 4, "{problems:?}");
}

#[test]
fn models_may_come_from_the_hub() {
    let config = serve(&["--model", "hf:Qwen/Qwen2.5-0.5B"]).unwrap();
    assert_eq!(config.model, ModelSource::Hub("Qwen/Qwen2.5-0.5B".parse().unwrap()));
    for bad in ["", "hf:", "hf:a", "hf:a/", "hf:../x", "hf:a/b/c", "hf:a/b?x"] {
        let problems = serve(&["--model", bad]).unwrap_err().0;
        assert!(matches!(&problems[..], [ConfigProblem::Invalid { flag: "--model", .. }]), "{bad}: {problems:?}");
    }
}

#[test]
fn models_and_adapters_of_the_hub_may_name_a_revision() {
    let flags = ["--model", "hf:org/base@v2", "--adapter", "Org/Sql=hf:org/sql@refs/pr/1", "--adapter", "local=/"];
    let config = serve(&flags).unwrap();
    assert_eq!(config.model, ModelSource::Hub("org/base@v2".parse().unwrap()));
    let adapters: Vec<_> =
        config.adapters.iter().map(|(name, source)| (name.to_string(), source.to_string())).collect();
    assert_eq!(
        adapters,
        [("Org/Sql", "hf:org/sql@refs/pr/1"), ("local", "/")].map(|(name, source)| (name.into(), source.into()))
    );
    for bad in ["a=hf:sql", "a=hf:org/sql@", "a=hf:org/sql@../x", "a=hf:", "a/b/c=/", "=/"] {
        let problems = serve(&["--model", "/", "--adapter", bad]).unwrap_err().0;
        assert!(matches!(&problems[..], [ConfigProblem::Invalid { flag: "--adapter", .. }]), "{bad}: {problems:?}");
    }
}

#[test]
fn every_problem_is_reported_at_once_by_its_flag() {
    let problems = serve(&[
        "--model",
        "/nonexistent",
        "--device",
        "cuda:x",
        "--threads",
        "0",
        "--block-size",
        "24",
        "--max-num-seqs",
        "64",
        "--max-num-batched-tokens",
        "32",
        "--adapter",
        "no-folder",
        "--adapter",
        "Bad-=/",
        "--adapter",
        "a=/",
        "--adapter",
        "a=/",
        "--handshake-timeout",
        "0s",
        "--store",
        "s3://bucket",
        "--max-message-bytes",
        "1MiB",
    ])
    .unwrap_err();
    let text = problems.to_string();
    for flag in [
        "--model: there is no folder /nonexistent",
        "--device is \"cuda:x\", expected auto, cpu or cuda:N",
        "--threads is 0, allowed are 1 to 1024",
        "--block-size is \"24\"",
        "--max-num-batched-tokens is 32, less than --max-num-seqs with 64",
        "--adapter is \"no-folder\", expected NAME=DIR",
        "--adapter is \"Bad-=/\"",
        "--adapter names \"a\" twice",
        "--handshake-timeout is 0",
        "--store is \"s3://bucket\"",
        "--max-message-bytes is 1048576",
    ] {
        assert!(text.contains(flag), "{flag:?} is missing from:\n{text}");
    }
    assert_eq!(problems.0.len(), 11);
}

#[test]
fn without_a_home_the_store_must_be_named() {
    let args = Args::try_parse_from(["polydelta", "serve", "--model", "/"]).unwrap();
    let Command::Serve(args) = args.command else { panic!() };
    let problems = ServeConfig::resolve(&args, &Environment::default()).unwrap_err().0;
    assert!(matches!(&problems[..], [ConfigProblem::NoDefault { flag: "--store", .. }]));
}

#[test]
fn unreadable_values_are_usage_errors_of_their_flag() {
    for flags in [["--drain-timeout", "30"], ["--kv-cache-bytes", "many"], ["--listen", "localhost"], ["--top", "1"]] {
        let error = Args::try_parse_from(["polydelta", "serve", "--model", "/"].iter().chain(&flags)).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8));
        assert!(error.to_string().contains(flags[0]), "{error}");
    }
}

#[test]
fn the_demo_needs_no_flags_and_collides_with_nothing() {
    let args = Args::try_parse_from(["polydelta", "demo", "--once"]).unwrap();
    let Command::Demo(args) = args.command else { panic!() };
    let config = ServeConfig::for_demo(&args, &Environment::default()).unwrap();
    assert!(args.once && !args.json);
    assert_eq!((config.model, config.store), (ModelSource::Bundled, StoreLocation::Temporary));
    assert_eq!(config.listen.port(), 0);
}

#[test]
fn client_verbs_parse() {
    let parse = |line: &str| Args::try_parse_from(line.split(' ')).map(|args| args.command);
    match parse("polydelta adapter upload sql ./adapters/sql --pin --json --timeout 90s").unwrap() {
        Command::Adapter(AdapterCommand::Upload(upload)) => {
            assert_eq!((upload.name.as_str(), upload.source), ("sql", AdapterSource::Dir("./adapters/sql".into())));
            assert!(upload.pin && upload.client.json);
            assert_eq!(upload.client.timeout.unwrap().as_secs(), 90);
            assert_eq!(upload.client.server, "http://127.0.0.1:50051");
        }
        other => panic!("{other:?}"),
    }
    for line in
        ["list", "show a", "delete a", "inspect dir", "export dir --as lora --to out", "load a --pin", "unload a"]
    {
        assert!(parse(&format!("polydelta adapter {line}")).is_ok(), "{line}");
    }
    match parse("polydelta generate hello --presence-penalty=-1 --stop a --stop b --n 2 --adapter sql").unwrap() {
        Command::Generate(generate) => {
            assert_eq!(generate.sampling.presence_penalty, Some(-1.0));
            assert_eq!(generate.stopping.stop, ["a", "b"]);
            assert_eq!((generate.n, generate.prompt.as_deref()), (Some(2), Some("hello")));
        }
        other => panic!("{other:?}"),
    }
    assert!(parse("polydelta adapter show Bad-").is_err());
    assert!(parse("polydelta adapter show Org/Name").is_ok());
    match parse("polydelta generate hi --mix sql=0.7,org/a=-0.25 --mix b=2").unwrap() {
        Command::Generate(generate) => {
            let mix: Vec<_> = generate.mix.iter().map(|part| (part.name.as_str(), part.weight)).collect();
            assert_eq!(mix, [("sql", 0.7), ("org/a", -0.25), ("b", 2.0)]);
            assert!(generate.check().is_ok());
        }
        other => panic!("{other:?}"),
    }
    match parse("polydelta generate hi --mix a=1,b=1 --adapter a").unwrap() {
        Command::Generate(generate) => assert!(generate.check().is_err(), "--mix or --adapter"),
        other => panic!("{other:?}"),
    }
    for bad in ["a", "a=", "=1", "a=b", "a=nan", "a=1,", "-a=1"] {
        assert!(parse(&format!("polydelta generate hi --mix {bad}")).is_err(), "{bad}");
    }
    match parse("polydelta generate hi --system x").unwrap() {
        Command::Generate(generate) => assert!(generate.check().is_err(), "--system needs --chat"),
        other => panic!("{other:?}"),
    }
}

/// What is wrong with a command line, the program's name left out.
fn wrong_with(line: &str) -> Vec<ConfigProblem> {
    let words = std::iter::once("polydelta").chain(line.split(' ')).map(Into::into).collect();
    match parse(words, &environment()) {
        Ok(_) => Vec::new(),
        Err(Refused::Problems { problems, .. }) => problems.0,
        Err(Refused::Shown(error)) => panic!("{error}"),
    }
}

#[test]
fn a_command_line_is_read_to_its_end() {
    let flags = |line: &str| {
        let named = |problem: &ConfigProblem| problem.flag().map_or_else(|| problem.to_string(), str::to_owned);
        let mut flags: Vec<_> = wrong_with(line).iter().map(named).collect();
        flags.sort();
        flags
    };
    assert_eq!(flags("serve --model /"), [""; 0]);
    assert_eq!(flags("generate -nx --seed=y -- --top-k"), ["--n", "--seed"]);
    assert_eq!(flags("generate hi --top-k -1 --seed -2 --temperature -0.5"), ["--seed", "--top-k"]);
    assert_eq!(flags("serve --model / --threads 0 --threads 2 --zz 1"), ["--threads", "there is no --zz here"]);
    assert_eq!(flags("serve --model / --log polydelta=loud"), ["--log"]);
    assert_eq!(flags("generate a b"), ["there is no b here"]);
    assert_eq!(flags("demo --once --jsn"), ["there is no --jsn here; is --json meant?"]);
    // What cannot be read has its default in the checks that follow, of which nothing is said.
    assert_eq!(flags("serve --model / --block-size x"), ["--block-size"]);
    assert_eq!(flags("adapter upload a"), ["<DIR|hf:ORG/REPO[@REV]> is missing"]);
}

#[test]
fn values_below_zero_and_texts_that_begin_with_a_dash_are_values() {
    let line = "polydelta generate -5 --presence-penalty -0.5 --priority -1 --stop --- --chat --system -x";
    match parse(line.split(' ').map(Into::into).collect(), &environment()).unwrap().command {
        Command::Generate(generate) => {
            assert_eq!(generate.sampling.presence_penalty, Some(-0.5));
            assert_eq!((generate.priority, generate.prompt.as_deref()), (Some(-1), Some("-5")));
            assert_eq!((generate.stopping.stop, generate.system.as_deref()), (vec!["---".to_owned()], Some("-x")));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_what_is_missing_is_not_found() {
    let missing = ConfigProblem::NoFolder { flag: "--model", path: "/x".into(), hint: String::new() };
    let wrong = ConfigProblem::NoValue { flag: "--threads".into() };
    assert_eq!(ConfigProblems(vec![missing.clone()]).exit(), Exit::NotFound);
    assert_eq!(ConfigProblems(vec![missing, wrong]).exit(), Exit::Usage);
}

#[test]
fn a_device_is_auto_the_cpu_or_a_gpu_by_number() {
    use super::DeviceChoice::{Auto, Cpu, Cuda};
    let of = |flags: &[&str]| serve(&[&["--model", "/"], flags].concat()).map(|config| config.device);
    assert_eq!(of(&[]).unwrap(), Auto);
    for (given, device) in [("auto", Auto), ("cpu", Cpu), ("cuda", Cuda(0)), ("cuda:3", Cuda(3))] {
        assert_eq!(of(&["--device", given]).unwrap(), device);
    }
    for bad in ["gpu", "cuda:", "cuda:-1", "cuda0"] {
        assert!(of(&["--device", bad]).unwrap_err().to_string().contains("auto, cpu or cuda:N"), "{bad}");
    }
    let problems = of(&["--device", "cuda:0", "--kernels", "reference"]).unwrap_err().to_string();
    assert!(problems.contains("--kernels reference computes on the CPU"), "{problems}");
}

#[test]
fn f16_is_for_gpus() {
    let of = |flags: &[&str]| serve(&[&["--model", "/", "--dtype", "f16"], flags].concat());
    for device in ["auto", "cuda:1"] {
        assert_eq!(of(&["--device", device]).unwrap().dtype, DtypeChoice::F16);
    }
    let problems = of(&["--device", "cpu", "--block-size", "24"]).unwrap_err().to_string();
    for problem in ["--dtype is \"f16\": the CPU computes in bf16 or f32", "--block-size is \"24\""] {
        assert!(problems.contains(problem), "{problems}");
    }
    let problems = of(&["--kernels", "reference"]).unwrap_err().to_string();
    assert!(problems.contains("--dtype is \"f16\": --kernels reference computes in f32"), "{problems}");
}
