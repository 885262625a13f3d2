// SPDX-License-Identifier: Apache-2.0
// Lines of the last while on a canvas.

const INSET = 2; // pixels that a line keeps from the edges
const AREA = 0.16; // how much of its colour is beneath a line

// Draw `lines`, each with the name of a colour in style.css and with values of which the last is
// of now; there is room for `room` of them.  null is a gap.
export function draw(canvas, lines, room) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const colours = getComputedStyle(canvas);
  const most = Math.max(...lines.flatMap((line) => line.values.map((value) => value ?? 0)), 0);
  const inset = INSET * scale;
  baseline(context, colours, width, height - inset, scale);
  for (const line of lines) {
    const x = (at) => width - inset - ((line.values.length - 1 - at) * (width - 2 * inset)) / (room - 1);
    const y = (value) => height - inset - (most ? (value / most) * (height - 2 * inset) : 0);
    const colour = colours.getPropertyValue(`--${line.colour}`).trim();
    for (const part of unbroken(line.values)) {
      trace(context, part, x, y, colour, height - inset, scale);
    }
  }
}

function baseline(context, colours, width, bottom, scale) {
  context.fillStyle = colours.getPropertyValue("--line").trim();
  context.fillRect(0, Math.round(bottom), width, scale);
}

// The runs of values between gaps, as pairs of place and value.
function unbroken(values) {
  const parts = [];
  let part = [];
  values.forEach((value, at) => {
    if (value !== null && value !== undefined) {
      part.push([at, value]);
    } else if (part.length) {
      parts.push(part);
      part = [];
    }
  });
  if (part.length) parts.push(part);
  return parts;
}

function trace(context, part, x, y, colour, bottom, scale) {
  const points = part.map(([at, value]) => [x(at), y(value)]);
  if (points.length === 1) points.unshift([points[0][0] - scale, points[0][1]]);
  context.beginPath();
  points.forEach(([right, down]) => context.lineTo(right, down));
  context.strokeStyle = colour;
  context.lineWidth = 1.5 * scale;
  context.lineJoin = "round";
  context.stroke();
  context.lineTo(points[points.length - 1][0], bottom);
  context.lineTo(points[0][0], bottom);
  context.globalAlpha = AREA;
  context.fillStyle = colour;
  context.fill();
  context.globalAlpha = 1;
}
