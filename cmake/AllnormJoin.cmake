# Sources compiled several at a time.
set(ALLNORM_JOIN 1 CACHE STRING "How many sources are compiled as one; more than 1 is for whole builds, not for work on a file")

# allnorm_join(<name> <list>): the sources of that list, ALLNORM_JOIN at a time in files that include them: headers are
# then read once, and their templates instantiated once, for all of them, which is most of what a source takes to
# compile. Paths are relative to the project, so that a compiler cache serves every checkout. What has properties of its
# own is to be added later.
function(allnorm_join name list)
  list(LENGTH ${list} join_count)
  if(ALLNORM_JOIN LESS 2 OR join_count LESS 2)
    return()
  endif()
  math(EXPR parts "(${join_count} + ${ALLNORM_JOIN} - 1) / ${ALLNORM_JOIN}")
  set(joined "")
  foreach(part RANGE 1 ${parts})
    math(EXPR first "(${part} - 1) * ${join_count} / ${parts}")
    math(EXPR length "${part} * ${join_count} / ${parts} - ${first}")
    list(SUBLIST ${list} ${first} ${length} own)
    # What one file declares is no concern of a local name in another, and an included file may have types of its own.
    set(text "#pragma GCC diagnostic ignored \"-Wshadow\"\n#pragma GCC diagnostic ignored \"-Wsubobject-linkage\"\n")
    foreach(source IN LISTS own)
      get_filename_component(path "${source}" ABSOLUTE)
      file(RELATIVE_PATH path "${PROJECT_SOURCE_DIR}" "${path}")
      string(APPEND text "#include \"${path}\"\n")
    endforeach()
    set(file "${CMAKE_CURRENT_BINARY_DIR}/joined/${name}_${part}.cpp")
    file(CONFIGURE OUTPUT "${file}" CONTENT "${text}" @ONLY)
    list(APPEND joined "${file}")
  endforeach()
  set(${list} "${joined}" PARENT_SCOPE)
endfunction()
