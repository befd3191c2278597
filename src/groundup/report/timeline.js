"use strict";
// The bar under the pointer, or the one that the arrow keys have come to, is described under the drawing.
const said = document.getElementById("said");
const lanes = Array.from(document.querySelectorAll("g.lane"));
const bars = lanes.map((lane) => Array.from(lane.querySelectorAll("rect.bar")));
const places = lanes.map(() => 0);

function show(bar) {
  document.querySelectorAll("rect.shown").forEach((other) => other.classList.remove("shown"));
  bar.classList.add("shown");
  said.textContent = bar.parentNode.dataset.name + ". " + bar.querySelector("title").textContent;
}

lanes.forEach((lane, number) => {
  lane.addEventListener("pointerover", (event) => {
    if (event.target.matches("rect.bar")) show(event.target);
  });
  lane.addEventListener("focus", () => { if (bars[number].length) show(bars[number][places[number]]); });
  lane.addEventListener("keydown", (event) => {
    const last = bars[number].length - 1;
    const place = { ArrowRight: places[number] + 1, ArrowLeft: places[number] - 1, Home: 0, End: last }[event.key];
    if (place === undefined || last < 0) return;
    event.preventDefault();
    places[number] = Math.max(0, Math.min(last, place));
    const bar = bars[number][places[number]];
    show(bar);
    bar.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
});

const zoom = document.getElementById("zoom");
zoom.addEventListener("input", () => {
  document.getElementById("drawing").style.width = 100 * Number(zoom.value) + "%";
});
