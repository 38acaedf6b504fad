"use strict";
// The sliders, the copy buttons, and opening everything for print. Without this script the page shows tables instead.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 48, RIGHT = 92, TOP = 16, BOTTOM = 38, WIDTH = 390, FLOOR = -0.25, ROW = 13;
  const WORDS = { none: "without", before: "with" };
  const explored = JSON.parse(document.getElementById("explored").textContent);
  const find = (id) => document.getElementById(id);

  function number(value) {
    if (value === null || !Number.isFinite(value)) return "–";
    const text = Math.abs(value) >= 100
      ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3)));
    return text.replace("-", "−");
  }

  function add(parent, tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  // Round numbers on an axis: powers of ten where it spans some, else steps of 1, 2 or 5.
  function ticks(low, high, log) {
    const all = [];
    if (log) {
      const digits = Math.log10(high / low) > 2.5 ? [1] : Math.log10(high / low) > 1.2 ? [1, 3] : [1, 2, 3, 5, 7];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e += 1) {
        for (const d of digits) all.push(d * 10 ** e);
      }
    } else {
      const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].find((s) => s * power >= rough) * power;
      for (let i = Math.ceil(low / step); i * step <= high; i += 1) all.push(i * step);
    }
    return all.filter((t) => t >= low * (1 - 1e-9) - (log ? 0 : 1e-9) && t <= high * (1 + 1e-9));
  }

  // Draw axes and return the places of values in them.
  function axes(svg, x, y) {
    for (const old of [...svg.children]) if (old.tagName !== "title") old.remove();
    const height = svg.viewBox.baseVal.height;
    const share = (v, axis) => axis.log ? Math.log(v / axis.low) / Math.log(axis.high / axis.low)
      : (v - axis.low) / (axis.high - axis.low);
    const at = (v) => LEFT + share(v, x) * (WIDTH - LEFT - RIGHT);
    const up = (v) => height - BOTTOM - share(v, y) * (height - BOTTOM - TOP);
    for (const t of x.ticks || ticks(x.low, x.high, x.log)) {
      add(svg, "path", { d: `M${at(t)} ${TOP}V${height - BOTTOM}` });
      add(svg, "text", { x: at(t), y: height - BOTTOM + 14, "text-anchor": "middle" }, number(t));
    }
    for (const t of ticks(y.low, y.high, y.log)) {
      add(svg, "path", { d: `M${LEFT} ${up(t)}H${WIDTH - RIGHT}` });
      add(svg, "text", { x: LEFT - 5, y: up(t) + 4, "text-anchor": "end" }, number(t));
    }
    add(svg, "path", { class: "axis", d: `M${LEFT} ${TOP}V${height - BOTTOM}H${WIDTH - RIGHT}` });
    const middle = (LEFT + WIDTH - RIGHT) / 2;
    add(svg, "text", { x: middle, y: height - 6, "text-anchor": "middle" }, x.label);
    add(svg, "text", { class: "title", x: 4, y: TOP - 5 }, y.label);
    return { at, up, bottom: height - BOTTOM };
  }

  // The first step at the goal, if the curve ends there too.
  function arrival(curve, goal) {
    const last = curve.median[curve.median.length - 1];
    if (goal === null || last === null || last < goal) return Infinity;
    return curve.steps[curve.median.findIndex((score) => score !== null && score >= goal)];
  }

  function limits(network) {
    const scores = [network.goal, network.guess], steps = [];
    for (const curves of Object.values(network.sides)) {
      for (const curve of Object.values(curves)) {
        scores.push(...curve.median.filter((s) => s !== null));
        steps.push(...curve.steps.filter((s) => s > 0));
      }
    }
    const low = Math.min(...scores), high = Math.max(...scores);
    const bottom = low < FLOOR ? FLOOR : low - 0.04 * (high - Math.max(low, FLOOR));
    return { low: bottom, high: high + 0.06 * (high - bottom), cut: low < FLOOR, steps };
  }

  // Names at the ends of lines, pushed apart.
  function nameEnds(svg, ends, bottom) {
    ends.sort((a, b) => a.y - b.y);
    ends.forEach((end, i) => {
      if (i > 0) end.y = Math.max(end.y, ends[i - 1].y + ends[i - 1].rows.length * ROW + 2);
    });
    const over = ends.length ? ends[ends.length - 1].y + (ends[ends.length - 1].rows.length - 1) * ROW - bottom : 0;
    for (const end of ends) {
      const text = add(svg, "text", { class: end.side, x: WIDTH - RIGHT + 5, y: end.y + 4 - Math.max(over, 0) });
      end.rows.forEach((row, i) => add(text, "tspan", { x: WIDTH - RIGHT + 5, dy: i ? ROW : 0 }, row));
    }
  }

  function drawCurves(svg, network, rate) {
    const range = limits(network), score = explored.score;
    const place = axes(svg, { low: Math.min(...range.steps), high: Math.max(...range.steps), log: true, label: "training steps" },
      { low: range.low, high: range.high, label: `test ${score}` });
    const clip = add(add(svg, "clipPath", { id: `${svg.id}-clip` }), "rect",
      { x: LEFT, y: 0, width: WIDTH - LEFT - RIGHT, height: place.bottom });
    for (const [value, name] of [[network.goal, "goal"], [network.guess, "guessing"]]) {
      add(svg, "path", { class: "goal", d: `M${LEFT} ${place.up(value)}H${WIDTH - RIGHT}` });
      const goal = name === "goal";
      add(svg, "text", { x: goal ? LEFT + 5 : WIDTH - RIGHT - 4, y: place.up(value) - 4, "text-anchor": goal ? "start" : "end" },
        `${name} ${number(value)}`);
    }
    const ends = [];
    for (const side of Object.keys(WORDS)) {
      const curve = network.sides[side][rate];
      if (!curve) continue;
      let path = "";
      curve.steps.forEach((step, i) => {
        const value = curve.median[i] === null ? range.low - 1 : Math.max(curve.median[i], range.low - 1);
        if (step > 0) path += `${path ? "L" : "M"}${place.at(step).toFixed(1)} ${place.up(value).toFixed(1)}`;
      });
      add(svg, "path", { class: `line ${side}`, d: path, "clip-path": `url(#${clip.parentNode.id})` });
      const last = curve.median[curve.median.length - 1], step = arrival(curve, network.goal);
      const said = last === null ? "diverges" : Number.isFinite(step) ? `step ${number(step)}` : "never there";
      const y = last === null ? place.bottom : Math.min(place.up(Math.max(last, range.low)), place.bottom);
      ends.push({ side, y, rows: [`${WORDS[side]}:`, said] });
    }
    nameEnds(svg, ends, place.bottom);
    if (range.cut) {
      add(svg, "path", { class: "chosen", d: `M${LEFT - 5} ${place.bottom - 4}l10 -5M${LEFT - 5} ${place.bottom - 9}l10 -5` });
      add(svg, "text", { x: LEFT + 9, y: place.bottom - 5 }, `▼ axis cut at ${number(FLOOR)}`);
    }
  }

  function ratioWords(without, withIt) {
    if (!Number.isFinite(without) || !Number.isFinite(withIt)) return "";
    const ratio = without / withIt;
    if (ratio > 1.05) return ` That is ${number(ratio)} times fewer steps with it.`;
    return ratio < 0.95 ? ` That is ${number(1 / ratio)} times more steps with it.` : " That is about the same.";
  }

  function sayCurves(network, rate) {
    const steps = {};
    const parts = Object.keys(WORDS).map((side) => {
      const curve = network.sides[side][rate], words = `${WORDS[side]} batch normalization`;
      if (!curve) return `${words}, this rate was not run`;
      const last = curve.median[curve.median.length - 1], budget = number(curve.steps[curve.steps.length - 1]);
      steps[side] = arrival(curve, network.goal);
      if (last === null) return `${words}, the median run diverges`;
      const ends = `(last score ${number(last)})`;
      if (!Number.isFinite(steps[side])) return `${words}, the goal is not reached within ${budget} steps ${ends}`;
      return `${words}, the goal is reached at step ${number(steps[side])} ${ends}`;
    });
    const best = `Best on the validation rows: ${number(network.best.none)} without, ${number(network.best.before)} with.`;
    const ratio = ratioWords(steps.none, steps.before);
    return `${network.name}, learning rate ${number(Number(rate))}: ${parts.join("; ")}.${ratio} ${best}`;
  }

  function exploreRates() {
    const slider = find("rates-slider"), chooser = find("rates-network"), value = find("rates-value");
    const show = () => {
      const network = explored.networks[chooser ? Number(chooser.value) : 0];
      const rate = network.rates[Number(slider.value)];
      const key = Object.keys({ ...network.sides.none, ...network.sides.before }).find((k) => Math.abs(Number(k) / rate - 1) < 1e-4);
      value.textContent = number(rate);
      slider.setAttribute("aria-valuetext", number(rate));
      drawCurves(find("rates-chart"), network, key);
      find("rates-said").textContent = sayCurves(network, key);
    };
    const start = () => {
      const network = explored.networks[chooser ? Number(chooser.value) : 0];
      slider.max = network.rates.length - 1;
      slider.value = network.rates.reduce((best, rate, i) => {
        const off = (r) => Math.abs(Math.log(r / network.best.before));
        return off(rate) < off(network.rates[best]) ? i : best;
      }, 0);
      show();
    };
    slider.addEventListener("input", show);
    if (chooser) chooser.addEventListener("change", start);
    start();
  }

  function drawSizes(svg, values, label, chosen) {
    const sizes = explored.sizes.sizes, present = values.filter((v) => v !== null && v > 0);
    if (!present.length) return;
    const edge = (all, factor) => ({ low: Math.min(...all) / factor, high: Math.max(...all) * factor, log: true });
    const place = axes(svg, { ...edge(sizes, 1.15), ticks: sizes, label: "batch size" }, { ...edge(present, 1.3), label });
    let path = "";
    sizes.forEach((size, i) => {
      if (values[i] === null) path += " ";
      else path += `${path === "" || path.endsWith(" ") ? "M" : "L"}${place.at(size).toFixed(1)} ${place.up(values[i]).toFixed(1)}`;
    });
    add(svg, "path", { class: "line before", d: path.trim() });
    add(svg, "path", { class: "chosen", d: `M${place.at(sizes[chosen])} ${TOP}V${place.bottom}` });
    sizes.forEach((size, i) => {
      const here = i === chosen ? { class: "chosen", r: 5 } : { r: 3.5 };
      if (values[i] !== null) add(svg, "circle", { cx: place.at(size), cy: place.up(values[i]), ...here });
      else if (i === chosen) add(svg, "text", { x: place.at(size) + 4, y: TOP + 10 }, "never there");
    });
    if (values[chosen] !== null) {
      add(svg, "text", { x: WIDTH - RIGHT + 5, y: place.up(values[chosen]) + 4 }, `${number(values[chosen])}`);
    }
  }

  function least(values) {
    let best = -1;
    values.forEach((v, i) => { if (v !== null && (best < 0 || v < values[best])) best = i; });
    return best;
  }

  function exploreSizes() {
    const { sizes, steps, seconds } = explored.sizes, slider = find("sizes-slider");
    const timed = find("seconds-chart"), time = (s) => s < 1 ? `${number(1000 * s)} ms` : `${number(s)} s`;
    const show = () => {
      const i = Number(slider.value);
      find("sizes-value").textContent = number(sizes[i]);
      slider.setAttribute("aria-valuetext", number(sizes[i]));
      drawSizes(find("sizes-chart"), steps, "steps to the goal", i);
      if (timed) drawSizes(timed, seconds.map((s) => s === null ? null : 1000 * s), "milliseconds to the goal", i);
      const spent = seconds[i] === null ? "" : `, which take ${time(seconds[i])}`;
      let said = steps[i] === null ? `Batches of ${number(sizes[i])}: the median run does not reach the goal.`
        : `Batches of ${number(sizes[i])}: ${number(steps[i])} steps to the goal${spent}.`;
      const few = least(steps), fast = least(seconds);
      if (few >= 0) said += ` Fewest steps: ${number(steps[few])} with batches of ${number(sizes[few])}.`;
      if (fast >= 0) said += ` Least time: ${time(seconds[fast])} with batches of ${number(sizes[fast])}.`;
      find("sizes-said").textContent = said;
    };
    slider.value = Math.max(least(seconds), least(steps) >= 0 && least(seconds) < 0 ? least(steps) : 0);
    slider.addEventListener("input", show);
    show();
  }

  async function copy(button) {
    const source = find(button.dataset.copies);
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
  for (const table of document.querySelectorAll("details.plain")) table.open = false;
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details:not([open])")) {
      folded.open = true;
      folded.dataset.folded = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const folded of document.querySelectorAll("details[data-folded]")) {
      folded.open = false;
      delete folded.dataset.folded;
    }
  });
  if (explored.networks.length) exploreRates();
  if (explored.sizes) exploreSizes();
})();
