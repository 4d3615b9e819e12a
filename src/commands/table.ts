/** Rows below their head, in columns as wide as what stands in them; ends without a newline. */
export function formatTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [head, ...rows]
  const widths = head.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)))
  return lines
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** A moment to the second, in UTC; `none` when there is none. */
export function formatTime(time: number | undefined, none: string): string {
  return time === undefined ? none : `${new Date(time).toISOString().slice(0, 19)}Z`
}

/** Data for programs. */
export function formatJson(value: unknown): string {
  return JSON.stringify(value, undefined, 2)
}
