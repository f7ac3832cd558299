const known = JSON.parse(document.getElementById("known").textContent);
const at = (id) => document.getElementById(id);
const canvas = new Canvas(at("canvas"));
let story = null, running = null, timer = null;

function say(words, wrong = false) { at("said").textContent = words; at("said").className = wrong ? "wrong" : ""; }

function body() {
  const asked = { model: known.model };
  if (known.chat) asked.messages = [{ role: "user", content: at("prompt").value }];
  else asked.prompt = at("prompt").value;
  for (const name of ["max_tokens", "block_length", "steps", "temperature", "seed"])
    if (at(name).value !== "") asked[name] = Number(at(name).value);
  return asked;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const name = part.match(/^event: (.*)$/m), data = part.match(/^data: (.*)$/m);
      if (data) yield [name ? name[1] : "", JSON.parse(data[1])];
    }
  }
}

const take = {
  start(told) {
    story = { length: told.length, steps: told.planned, events: [] };
    canvas.clear(told.length); at("progress").max = told.planned;
    say(told.waiting > 0 ? `${told.waiting} others are in front …` : "It begins …");
  },
  step(told) {
    canvas.settle();
    for (const [position, text, sure] of told.written) {
      canvas.write(position, text, sure); story.events.push([told.steps, position, text, sure]);
    }
    at("progress").value = told.steps;
    say(`step ${told.steps} of ${told.planned} · ${story.events.length} tokens · ${told.seconds.toFixed(1)} s · ` +
        `${(story.events.length / told.seconds).toFixed(1)} tokens/s`);
  },
  end(told) {
    canvas.settle(); story.steps = told.steps;
    for (const name of ["again", "range"]) at(name).disabled = false;
    at("range").max = story.steps; at("range").value = story.steps; at("progress").value = at("progress").max;
    canvas.show(story, story.steps);
    say(`${story.events.length} tokens in ${told.steps} steps, ${told.seconds.toFixed(1)} s · finished by ${told.finish_reason}`);
  },
  error(told) { say(told.error.message, true); },
};

async function write(event) {
  event.preventDefault(); clearInterval(timer);
  running = new AbortController();
  at("go").disabled = true; at("stop").disabled = at("again").disabled = false;
  at("again").disabled = at("range").disabled = true;
  const headers = { "Content-Type": "application/json" };
  if (known.needsKey) headers.Authorization = `Bearer ${at("key").value}`;
  try {
    const response = await fetch("v1/denoise", { method: "POST", headers, body: JSON.stringify(body()), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const [name, told] of events(response)) if (take[name]) take[name](told);
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  }
  at("go").disabled = false; at("stop").disabled = true;
}

at("form").addEventListener("submit", write);
at("stop").addEventListener("click", () => running && running.abort());
at("range").addEventListener("input", () => { clearInterval(timer); canvas.show(story, Number(at("range").value)); });
at("again").addEventListener("click", () => {
  clearInterval(timer); let step = 0;
  timer = setInterval(() => {
    canvas.show(story, ++step); at("range").value = step;
    if (step >= story.steps) clearInterval(timer);
  }, Math.max(50, Math.min(200, 8000 / story.steps)));
});
