// The answers: class and confidence under the pointer, opacity, classes on and off, the overlay as a file. All of it is read off
// the images that an answer holds; of two answers, both follow.
(() => {
  const contexts = new WeakMap();
  const shown = new Map(); // name of a class in lower case → whether it is on, of those that the visitor has changed
  let opacity = 0.5;

  function canvasOf(width, height) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
  }

  // The values as a canvas; null before the browser has decoded them.
  function values(result) {
    const image = result.querySelector(".seg-values");
    if (!image.complete || !image.naturalWidth) return null;
    if (!contexts.has(image)) {
      const [, context] = canvasOf(image.naturalWidth, image.naturalHeight);
      context.drawImage(image, 0, 0);
      contexts.set(image, context);
    }
    return contexts.get(image);
  }

  function pointAt(stack, across, down) {
    const context = values(stack.parentElement);
    if (!context) return;
    const [column, row] = [Math.floor(across * context.canvas.width), Math.floor(down * context.canvas.height)];
    const [id, percent] = context.getImageData(column, row, 1, 1).data;
    const tip = stack.querySelector(".seg-tip");
    const name = stack.parentElement.querySelectorAll(".seg-names li")[id].textContent;
    tip.textContent = `${name} · ${percent} %`;
    tip.hidden = false;
    // Beside the place, on the side where there is room.
    tip.style.left = across < 0.5 ? `calc(${100 * across}% + 14px)` : "auto";
    tip.style.right = across < 0.5 ? "auto" : `calc(${100 * (1 - across)}% + 14px)`;
    tip.style.top = `clamp(0px, calc(${100 * down}% - 14px), calc(100% - 28px))`;
    const dot = stack.querySelector(".seg-dot");
    dot.hidden = false;
    dot.style.left = `${100 * across}%`;
    dot.style.top = `${100 * down}%`;
  }

  function follow(event) {
    const under = event.target.closest?.(".seg-stack");
    const stacks = document.querySelectorAll(".seg-stack");
    if (!under) {
      for (const mark of document.querySelectorAll(".seg-tip, .seg-dot")) mark.hidden = true;
      return;
    }
    const box = under.getBoundingClientRect();
    const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (across < 0 || across >= 1 || down < 0 || down >= 1) return;
    for (const stack of stacks) pointAt(stack, across, down);
  }

  const boxes = (result) => [...result.querySelectorAll(".seg-legend input")];
  const nameOf = (box) => box.parentElement.textContent.toLowerCase();

  // The colours of the classes that are on, drawn from the values; null before these are there.
  function colourCanvas(result) {
    const context = values(result);
    if (!context) return null;
    const { width, height } = context.canvas;
    const colours = new Map(boxes(result).filter((box) => box.checked).map((box) => [+box.dataset.id, box.dataset.colour.split(",")]));
    const [canvas, painted] = canvasOf(width, height);
    const pixels = context.getImageData(0, 0, width, height);
    for (let place = 0; place < pixels.data.length; place += 4) {
      const colour = colours.get(pixels.data[place]);
      for (let channel = 0; channel < 3; channel++) pixels.data[place + channel] = colour ? colour[channel] : 0;
      pixels.data[place + 3] = colour ? 255 : 0;
    }
    painted.putImageData(pixels, 0, 0);
    return canvas;
  }

  function paint(result) {
    const canvas = colourCanvas(result);
    if (canvas) result.querySelector(".seg-colours").src = canvas.toDataURL("image/png");
  }

  // A new answer gets the opacity and the classes that the visitor has chosen for the last one.
  function adopt(result) {
    result.dataset.adopted = "";
    result.querySelector(".seg-opacity input").value = opacity;
    for (const box of boxes(result)) box.checked = shown.get(nameOf(box)) ?? box.checked;
    if (shown.size) whenDecoded(result, () => paint(result));
  }

  function whenDecoded(result, act) {
    result.querySelector(".seg-values").decode().then(act, () => {}); // an answer that was replaced meanwhile is not decoded
  }

  function show(names) {
    for (const [name, on] of names) shown.set(name, on);
    for (const result of document.querySelectorAll(".seg-result")) {
      for (const box of boxes(result)) box.checked = shown.get(nameOf(box)) ?? box.checked;
      paint(result);
    }
  }

  function setOpacity(value) {
    opacity = value;
    document.documentElement.style.setProperty("--seg-opacity", value);
    for (const slider of document.querySelectorAll(".seg-opacity input")) slider.value = value;
  }

  // The overlay with the opacity and the classes of the moment, as a PNG.
  function overlayUrl(result) {
    const image = result.querySelector(".seg-image");
    const [canvas, context] = canvasOf(image.naturalWidth, image.naturalHeight);
    context.drawImage(image, 0, 0);
    context.globalAlpha = opacity;
    context.drawImage(colourCanvas(result), 0, 0);
    return canvas.toDataURL("image/png");
  }

  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerdown", follow);
  document.addEventListener("input", (event) => {
    if (event.target.closest?.(".seg-opacity")) setOpacity(event.target.value);
  });
  document.addEventListener("change", (event) => {
    if (event.target.closest?.(".seg-legend")) show([[nameOf(event.target), event.target.checked]]);
  });
  document.addEventListener("click", (event) => {
    const result = event.target.closest?.(".seg-result");
    if (event.target.closest?.(".seg-overlay")) event.target.href = overlayUrl(result); // then the browser saves it
    const which = event.target.closest?.(".seg-legend button")?.dataset.show;
    if (which) show(boxes(result).map((box) => [nameOf(box), which === "all"]));
  });
  new MutationObserver(() => {
    for (const result of document.querySelectorAll(".seg-result:not([data-adopted])")) adopt(result);
  }).observe(document, { childList: true, subtree: true });
})();
