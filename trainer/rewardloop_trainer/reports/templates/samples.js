"use strict";
for (const block of document.querySelectorAll(".samples")) {
  const list = block.querySelector(".list");
  const search = block.querySelector("input");
  const sort = block.querySelector("select");
  const count = block.querySelector("output");
  const samples = Array.from(list.children, (element, place) => ({
    element,
    place,
    text: element.textContent.toLowerCase(),
    figures: JSON.parse(element.dataset.figures),
  }));
  const filter = () => {
    const wanted = search.value.toLowerCase();
    let found = 0;
    for (const sample of samples) {
      const isFound = sample.text.includes(wanted);
      sample.element.hidden = !isFound;
      found += isFound;
    }
    count.textContent = `${found} of ${samples.length}`;
  };
  const order = () => {
    const option = sort.selectedOptions[0];
    const direction = Number(option.dataset.order || 0);
    // A sample without the figure comes last in either direction.
    const key = (sample) =>
      Object.hasOwn(sample.figures, option.value) ? direction * sample.figures[option.value] : Infinity;
    const sorted = Array.from(samples).sort((a, b) => {
      const [x, y] = direction ? [key(a), key(b)] : [0, 0];
      return x < y ? -1 : x > y ? 1 : a.place - b.place;
    });
    list.append(...sorted.map((sample) => sample.element));
  };
  search.addEventListener("input", filter);
  sort.addEventListener("change", order);
  block.querySelector(".controls").hidden = false;
  filter();
}
