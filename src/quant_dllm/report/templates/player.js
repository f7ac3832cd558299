"use strict";
/* Plays texts as they were denoised. A canvas is an element; its story is a list of
   [step, position, text, confidence]. Both pages use it: the report, and the live one. */
function tint(sure) {
  const off = Math.max(-1, Math.min(1, 2 * sure - 1));
  return off < 0 ? `rgba(var(--unsure), ${(0.06 + 0.56 * -off).toFixed(3)})`
                 : `rgba(var(--sure), ${(0.06 + 0.36 * off).toFixed(3)})`;
}
class Canvas {
  constructor(element) { this.element = element; this.cells = []; }
  clear(length) {
    this.cells = Array.from({ length }, () => {
      const cell = document.createElement("span");
      cell.className = "t hidden"; cell.textContent = "··"; return cell;
    });
    this.element.replaceChildren(...this.cells);
  }
  settle() { for (const cell of this.cells) cell.classList.remove("new"); }
  write(position, text, sure) {
    const cell = this.cells[position];
    if (!cell) return;
    cell.textContent = text; cell.className = "t new"; cell.style.backgroundColor = tint(sure);
    cell.title = `${(100 * sure).toFixed(1)} % sure`;
  }
  show(story, step) {
    this.clear(story.length);
    for (const [at, position, text, sure] of story.events) {
      if (at > step) break;
      this.write(position, text, sure);
      if (at < step || step >= story.steps) this.cells[position].classList.remove("new");
    }
    if (step >= story.steps) for (const cell of this.cells) if (cell.classList.contains("hidden")) cell.remove();
  }
}
class Player {
  constructor(root) {
    this.root = root; this.timer = null;
    this.parts = [...root.querySelectorAll(".answer")].map((element) => ({
      canvas: new Canvas(element.querySelector(".canvas")), said: element.querySelector("h3 span"),
      story: JSON.parse(element.querySelector("script").textContent) }));
    this.steps = Math.max(...this.parts.map((part) => part.story.steps));
    this.range = root.querySelector("input"); this.button = root.querySelector("button");
    this.range.max = this.steps; this.range.value = this.steps;
    this.range.addEventListener("input", () => { this.stop(); this.show(); });
    this.button.addEventListener("click", () => this.timer ? this.stop() : this.play());
    this.show();
  }
  show() {
    const at = Number(this.range.value);
    for (const { canvas, story, said } of this.parts) {
      const step = at >= this.steps ? story.steps : Math.min(at, story.steps);
      canvas.show(story, step); said.textContent = `step ${step} of ${story.steps}`;
    }
  }
  play() {
    if (Number(this.range.value) >= this.steps) this.range.value = 0;
    this.button.textContent = "Pause"; this.show();
    this.timer = setInterval(() => {
      this.range.value = Number(this.range.value) + 1; this.show();
      if (Number(this.range.value) >= this.steps) this.stop();
    }, Math.max(60, Math.min(220, 9000 / this.steps)));
  }
  stop() { clearInterval(this.timer); this.timer = null; this.button.textContent = "Play"; }
}
document.querySelectorAll(".sample").forEach((root) => {
  const player = new Player(root); root.player = player;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches || !("IntersectionObserver" in window)) return;
  const watch = new IntersectionObserver((seen) => {
    if (seen[0].isIntersecting) { watch.disconnect(); player.play(); }
  }, { threshold: 0.6 });
  watch.observe(root);
});
