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

/** Bytes with a unit that fits. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let at = 0
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024
    at++
  }
  return `${at === 0 ? value : value.toFixed(1)} ${units[at]}`
}

/** A time span in its two largest units. @param milliseconds */
export function formatDuration(milliseconds: number): string {
  const seconds = Math.round(milliseconds / 1000)
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}
