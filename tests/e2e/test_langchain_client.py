"""LangChain's client for OpenAI's API, unchanged, against a site with real engines."""

import httpx
import openai
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

pytestmark = [pytest.mark.federation, pytest.mark.model]
CAPITAL = "대한민국의 수도는 어디입니까? 한 문장으로 답하세요."
TEMPERATURE = "What is the temperature in room B2?"


class Place(pydantic.BaseModel):
    """A place."""

    city: str
    is_capital: bool


@tool
def read_temperature(room: str) -> str:
    """Read the temperature of a server room in Celsius."""
    return "31 degrees Celsius"


@pytest.fixture(autouse=True)
def is_alone(monkeypatch, tmp_path):
    """Nothing is told to LangChain's makers, and nothing is fetched to count tokens here."""
    for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == [], "no tokenizer was fetched"


@pytest.fixture
def options(federation):
    with httpx.Client(timeout=60) as client:  # its own is closed by whoever collects garbage next
        yield {
            "base_url": f"{federation.url('gwangju')}/v1",
            "api_key": federation.key("gwangju-city"),
            "max_retries": 0,
            "timeout": 60,
            "http_client": client,
        }


@pytest.fixture
def chat(options):
    return ChatOpenAI(model="madang-chat", temperature=0, max_tokens=60, stream_usage=True, **options)


@pytest.mark.deep
def test_an_answer_and_what_it_used(chat):
    answer = chat.invoke([("system", "한국어로 짧게 답하세요."), ("human", CAPITAL)])
    assert "서울" in answer.content
    assert answer.response_metadata["model_name"] == "madang-chat"
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    used = answer.usage_metadata
    assert used["input_tokens"] > 10
    assert used["output_tokens"] > 1
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]


def test_a_stream_and_what_it_used(chat):
    pieces = list(chat.stream(CAPITAL))
    assert sum(bool(piece.content) for piece in pieces) > 3
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert "서울" in whole.content
    assert sum(piece.usage_metadata is not None for piece in pieces) == 1
    assert whole.usage_metadata["output_tokens"] > 3


def test_refusals_are_the_official_clients_own_classes(federation, options, chat):
    stranger = ChatOpenAI(model="madang-chat", **{**options, "api_key": "mdg_wrong_key"})
    with pytest.raises(openai.AuthenticationError) as unknown:
        stranger.invoke(CAPITAL)
    assert (unknown.value.status_code, unknown.value.code) == (401, "invalid_key")
    with pytest.raises(openai.NotFoundError) as missing:
        ChatOpenAI(model="gpt-9", **options).invoke(CAPITAL)
    assert missing.value.code == "model_not_found"
    clinic = ChatOpenAI(model="madang-chat", **{**options, "api_key": federation.key("daegu-clinic")})
    with pytest.raises(openai.PermissionDeniedError) as elsewhere:
        list(clinic.stream(CAPITAL))
    assert elsewhere.value.code == "residency_violation"
    assert federation.url("daegu") in str(elsewhere.value)


@pytest.mark.deep
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_in_a_schema(chat, method):
    found = chat.with_structured_output(Place, method=method, include_raw=True).invoke(CAPITAL)
    assert found["parsing_error"] is None
    assert isinstance(found["parsed"], Place)
    assert found["raw"].usage_metadata["output_tokens"] > 3


@pytest.mark.deep
def test_a_tool_is_called_and_its_result_is_told(chat):
    asked = [HumanMessage(TEMPERATURE)]
    called = chat.bind_tools([read_temperature], tool_choice="any").invoke(asked)
    (call,) = called.tool_calls
    assert called.invalid_tool_calls == []
    assert (call["name"], list(call["args"])) == ("read_temperature", ["room"])
    assert "B2" in call["args"]["room"]
    result = read_temperature.invoke(call)
    assert isinstance(result, ToolMessage)
    # So small a model might call again; what is tested is that it is told of the result.
    told = chat.bind_tools([read_temperature], tool_choice="none").invoke([*asked, called, result])
    assert isinstance(told, AIMessage)
    assert "31" in told.content


@pytest.mark.deep
def test_a_streamed_call_comes_whole(chat):
    whole = None
    for piece in chat.bind_tools([read_temperature], tool_choice="read_temperature").stream(TEMPERATURE):
        whole = piece if whole is None else whole + piece
    (call,) = whole.tool_calls
    assert (call["name"], list(call["args"])) == ("read_temperature", ["room"])


@pytest.mark.deep
def test_a_batch_keeps_its_order(chat):
    words = ["apple", "river", "stone", "cloud"]
    asked = [f"Repeat this word and nothing else: {word}" for word in words]
    answers = chat.batch(asked, config={"max_concurrency": 4})
    assert [answer.content.lower().strip(" .!\"'") for answer in answers] == words


@pytest.mark.deep
def test_responses_api(options):
    answer = ChatOpenAI(model="madang-chat", use_responses_api=True, temperature=0, **options).invoke(CAPITAL)
    assert "서울" in answer.text
    assert answer.usage_metadata["output_tokens"] > 1


def test_embeddings_rank_by_meaning(options):
    embeddings = OpenAIEmbeddings(model="madang-embed", check_embedding_ctx_length=False, **options)
    documents = [
        "흉부 X선 판독 결과 폐렴 의심 소견",
        "베어링 진동 이상 감지 알람 처리",
        "서버실 항온항습기 고장 시 조치 방법",
    ]
    rows = embeddings.embed_documents(documents)
    asked = embeddings.embed_query("에어컨이 멈췄는데 데이터센터에서 무엇을 해야 하나요")
    scores = [sum(a * b for a, b in zip(asked, row, strict=True)) for row in rows]
    assert len(asked) == 384
    assert max(range(3), key=scores.__getitem__) == 2, scores
