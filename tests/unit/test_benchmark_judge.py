"""A language model as judge, behind a real HTTP server on this machine."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from atrl.benchmarks.base import Answer, Item
from atrl.benchmarks.endpoint import EndpointJudge
from atrl.benchmarks.hallusionbench import HallusionBench
from atrl.benchmarks.judge import JudgeRequest, prompt_hash
from atrl.benchmarks.logicvista import LogicVista
from atrl.benchmarks.mathverse import MathVerse
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.mmvet import MMVet
from atrl.benchmarks.run import score_recorded
from atrl.benchmarks.scoring import scorer_for
from atrl.benchmarks.wemath import WeMath
from tests.unit.test_benchmark_rules import hallusion_item

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def endpoint():
    """A server whose answers are given in a list: texts, or statuses to refuse with; the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, self.headers.get("Authorization"), body))
            planned = server.plan.pop(0) if len(server.plan) > 1 else server.plan[0]
            status = planned if isinstance(planned, int) else 200
            usage = {"prompt_tokens": 7, "completion_tokens": 2}
            content = json.dumps({"choices": [{"message": {"content": planned}}], "usage": usage}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.plan = [], ["1"]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def judge_at(endpoint, tmp_path, **options) -> EndpointJudge:
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    defaults = {"workers": 1, "pause": 0.0, "cache": str(tmp_path / "cache"), "key_variable": "JUDGE_KEY"}
    return EndpointJudge(model="m", url=url, **(defaults | options))


def test_a_request_and_its_cache(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = judge_at(endpoint, tmp_path)
    request = JudgeRequest("Is it?", max_tokens=3)
    assert [reply.text for reply in judge.ask([request, request])] == ["1", "1"]
    ((path, key, body),) = endpoint.seen
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["messages"] == [{"role": "user", "content": "Is it?"}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 3)
    assert judge.usage() == {
        **{"requests": 1, "cached": 1, "prompt_tokens": 7, "completion_tokens": 2, "failures": 0},
    }
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "cache").rglob("*.json"))
    judge.ask([JudgeRequest("Is it?", max_tokens=3, attempt=1)])
    assert endpoint.seen[-1][2]["temperature"] == 0.5


def test_failures_are_retried_and_then_no_verdict(endpoint, tmp_path):
    endpoint.plan = [429, 500, "0"]
    judge = judge_at(endpoint, tmp_path)
    assert judge.ask([JudgeRequest("a")])[0].text == "0"
    endpoint.plan = [503]
    broken = judge_at(endpoint, tmp_path, retries=2)
    (reply,) = broken.ask([JudgeRequest("b")])
    assert (reply.text, reply.error) == (None, "status 503")
    assert (broken.usage()["requests"], broken.usage()["failures"]) == (3, 1)
    assert (judge.failure, broken.failure) == (None, f"status 503 from {broken.url}")
    endpoint.plan = [401]
    refused = judge_at(endpoint, tmp_path)
    assert refused.ask([JudgeRequest("c")])[0].error == "status 401"
    assert refused.usage()["requests"] == 1  # a refused key does not get better
    endpoint.plan = [""]
    assert judge.ask([JudgeRequest("d")])[0].error == "an empty reply"
    gone = EndpointJudge(model="m", url="http://127.0.0.1:9/v1", retries=0, cache=None)
    assert gone.ask([JudgeRequest("e")])[0].error == "ConnectError"


def test_half_of_a_surrogate_pair_is_asked_about_as_a_question_mark(endpoint, tmp_path):
    """A recorded response that was cut within a sign: the whole evaluation ended in a UnicodeEncodeError."""
    endpoint.plan = ["1"]
    (reply,) = judge_at(endpoint, tmp_path).ask([JudgeRequest("is it ½, \ud83d")])
    assert reply.text == "1" and endpoint.seen[-1][2]["messages"][0]["content"] == "is it ½, ?"


def verdicts(endpoint, tmp_path, rule, item, plan, response="It is."):
    endpoint.plan = plan
    scorer = scorer_for(rule, judge_at(endpoint, tmp_path, retries=0), workers=1)
    try:
        return scorer.score([(item, Answer(item.id, response=response))])[0]
    finally:
        scorer.close()


def test_hallusionbench_by_a_judge(endpoint, tmp_path):
    rule = HallusionBench()
    for reply, figure, score in [("Correct.", "1", 1), ("incorrect", "1", 0), ("unclear", "1", 0), ("unclear", "0", 1)]:
        item = hallusion_item("VS", figure)
        assert verdicts(endpoint, tmp_path / f"{reply}{figure}", rule, item, [reply]).score == score


def test_mathverse_by_a_judge_extracts_first_and_asks_again(endpoint, tmp_path):
    item = Item("1", "5", {"question_type": "free-form", "question": "What?"})
    scored = verdicts(endpoint, tmp_path, MathVerse(), item, ["five", "maybe", "Judgement: 1"])
    assert (scored.extraction, scored.score) == ("five", 1.0)
    assert len(endpoint.seen) == 3
    assert "[Model_answer] : five" in endpoint.seen[1][2]["messages"][0]["content"]
    assert verdicts(endpoint, tmp_path / "x", MathVerse(), item, ["five", "maybe"]) is None
    assert len(endpoint.seen) == 3 + 1 + 5  # the verdict is asked for five times


CHOICE = {"question_type": "multi_choice", "answer_type": "text", "choices": ["Yes", "No"], "query": "Is it?"}
WHOLE = {"question_type": "free_form", "answer_type": "integer", "query": "How many?"}
ROUNDED = {"question_type": "free_form", "answer_type": "float", "precision": 1, "query": "How long?"}


@pytest.mark.parametrize(
    ("row", "gold", "response", "replies", "extraction", "score"),
    [
        (CHOICE, "No", "I say no, (B).", ["B"], "B", 1.0),
        (CHOICE, "No", "No", [], "No", 1.0),  # an option word for word needs no extraction
        (CHOICE, "No", "no", ["Yes"], "Yes", 0.0),  # but letter by letter
        (CHOICE, "No", "", [], "", 1.0),  # nothing said: the nearest option, by the rule
        (WHOLE, "3", "3", [], "3", 1.0),
        (WHOLE, "3", "3.0", [" 3 \n"], "3", 1.0),  # a whole number is read by int alone
        (WHOLE, "3", "It is three or four.", ["3"], "3", 1.0),
        (WHOLE | {"choices": ["three"]}, "3", "three", ["3"], "3", 1.0),  # options count where there is a choice
        (ROUNDED, "0.6", "0.57", [], "0.57", 1.0),
        (ROUNDED, "0.6", "about 0.57", ["0.57 m"], "0.57 m", 0.0),  # the rule reads the reply with float
    ],
)
def test_mathvista_extraction_by_a_judge(endpoint, tmp_path, row, gold, response, replies, extraction, score):
    item = Item("1", gold, row)
    scored = verdicts(endpoint, tmp_path, MathVista(), item, list(replies) or ["(A)"], response)
    assert (scored.extraction, scored.score) == (extraction, score)
    assert len(endpoint.seen) == len(replies)
    if replies:
        body = endpoint.seen[0][2]
        assert body["messages"][0]["content"].startswith("Please read the following example. Then extract the answer")
        assert body["messages"][0]["content"].endswith(f"{row['query']}\n\n{response}\n\nExtracted answer: ")
        assert body["max_tokens"] == 1024


@pytest.mark.parametrize(
    ("gold", "response", "replies", "score", "prediction"),
    [
        ("b, d", "B and D.", ['{"choices": ["D", "B"]}'], 1.0, "b, d"),
        ("b, d", "B and D.", ['```json\n{"choices": ["B, D"]}\n```'], 0.0, "b, d"),  # one entry is not two letters
        ("b", "B", ['{"choices": ["B"]}'], 1.0, "b"),  # even a single letter is asked about
        ("b", "ASSISTANT: B", ["sure", '{"choices": [2]}', '{"choices": ["b"]}'], 1.0, "b"),
        ("b", "no idea", ["ZZZZZ"], 0.0, None),
        ("b", "no idea", ['{"choices": []}'], 0.0, None),
        ("b", "G", [], 0.0, None),  # one letter beyond E chooses none
        ("", " ", [], 1.0, None),  # one official gold is empty
    ],
)
def test_logicvista_extraction_by_a_judge(endpoint, tmp_path, gold, response, replies, score, prediction):
    item = Item("v1_0", gold, {"question": "Which?"})
    scored = verdicts(endpoint, tmp_path, LogicVista(), item, list(replies) or ["{}"], response)
    assert (scored.score, scored.prediction) == (score, prediction)
    asked = [body["messages"][0]["content"] for _, _, body in endpoint.seen]
    assert len(asked) == len(replies)
    entry = response.removeprefix("ASSISTANT:")
    assert all('following question: "Which?"' in text and f'The answer is "{entry}"' in text for text in asked)
    assert all('{"properties": {"choices": {"description"' in text for text in asked)


DEEP = '{"choices": ' + "[" * 100_000 + "}"


def test_logicvista_without_a_list_of_letters_is_no_verdict(endpoint, tmp_path):
    item = Item("v1_0", "b", {"question": "Which?"})
    for number, reply in enumerate(("B", '{"choices": "B"}', '{"letters": ["B"]}', DEEP)):
        endpoint.seen.clear()
        assert verdicts(endpoint, tmp_path / str(number), LogicVista(), item, [reply], "It is B.") is None
        assert [body["temperature"] for _, _, body in endpoint.seen] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_mmvet_by_a_judge(endpoint, tmp_path):
    item = Item("v1_0", "-1<AND>-5", {"question": "x?"})
    assert verdicts(endpoint, tmp_path, MMVet(), item, ["0.7"]).score == 0.7
    assert endpoint.seen[0][2]["messages"][0]["content"].endswith("x? | -1 <AND> -5 | It is. | ")
    assert verdicts(endpoint, tmp_path / "later", MMVet(), item, ["good", "2", "0.3 |"]).score == 0.3
    assert [body["temperature"] for _, _, body in endpoint.seen[1:]] == [0.0, 0.5, 1.0]
    assert verdicts(endpoint, tmp_path / "never", MMVet(), item, ["good"]) is None
    assert len(endpoint.seen) == 1 + 3 + 5


def test_a_judges_failure_is_no_verdict_and_extractions_need_none(endpoint, tmp_path):
    rule, item = HallusionBench(), hallusion_item("VD", "1")
    assert verdicts(endpoint, tmp_path, rule, item, [500]) is None
    scorer = scorer_for(rule, judge_at(endpoint, tmp_path, retries=0), workers=1)
    try:
        pairs = [(item, Answer(item.id, extraction="yes")), (item, Answer(item.id, response="x"))]
        assert [scored and scored.score for scored in scorer.score(pairs)] == [1.0, None]
    finally:
        scorer.close()


def test_a_judge_that_judges_nothing_ends_the_run_and_says_why(endpoint, tmp_path):
    """A model that answers without doing what it is asked is another fault than one that can't be reached."""
    (tmp_path / "data.json").write_text(json.dumps({"v1_0": {"question": "x?", "answer": "1", "capability": ["math"]}}))
    (tmp_path / "answers.jsonl").write_text(json.dumps({"id": "v1_0", "response": "It is 1."}))
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    overrides = [
        "benchmark=mmvet", f"predictions='{tmp_path}/answers.jsonl'", f"data.path='{tmp_path}/data.json'", "threads=1",
        "judge=openai", f"judge.url={url}", "judge.retries=0", "judge.cache=null",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", overrides=overrides)
    endpoint.plan = ["A good answer.\n" + 100 * "x"]
    with pytest.raises(ValueError) as raised:
        score_recorded(config, tmp_path / "replied")
    assert str(raised.value) == (
        "judge: none of 1 answers could be judged, because its replies hold no verdict, one being "
        f"'A good answer.\\n{45 * 'x'}': take a judge.model that does what it is asked"
    )
    endpoint.plan = [401]
    with pytest.raises(ValueError, match=f"at last because of status 401 from {url}: check"):
        score_recorded(config, tmp_path / "refused")


def test_a_judge_where_none_is_wanted_is_refused(endpoint, tmp_path):
    with pytest.raises(ValueError, match="judge: wemath is scored by its rule alone"):
        scorer_for(WeMath(), judge_at(endpoint, tmp_path), workers=1)
    with pytest.raises(ValueError, match=r"judge\.url must begin with http"):
        EndpointJudge(model="m", url="localhost")


def test_the_hash_changes_with_the_wording_of_any_question_and_with_nothing_else(monkeypatch):
    from atrl.benchmarks import logicvista, mathverse, mathvista

    hashes = {prompt_hash(rule()) for rule in (HallusionBench, LogicVista, MathVerse, MathVista, MMVet)}
    assert len(hashes) == 5
    changes = [(mathverse, "_EXTRACT"), (mathverse, "_COMPARE"), (mathvista, "EXAMPLES"), (logicvista, "_REQUEST")]
    for module, question in changes:
        monkeypatch.setattr(module, question, getattr(module, question) + "!")
        hashes |= {prompt_hash(rule()) for rule in (MathVerse, MathVista, LogicVista)}
    assert len(hashes) == 9
